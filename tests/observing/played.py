"""What a script of doomed runs left (`doomed.py`, `doomed_savers.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from observatory.records import Run, open_run

HERE = Path(__file__).parent


class Played:
    """Plays the scenes of `script` in FOLDER/SCENE."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder = folder
        paths = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(HERE / script), str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        self.warnings: dict[str, list[list[str]]] = {}
        for line in done.stdout.splitlines():
            if line.startswith('{"folder"'):
                said = json.loads(line)
                self.warnings.setdefault(Path(said["folder"]).name, []).append(said["warnings"])

    def attempts(self, scene: str) -> list[int]:
        """How each ended: its exit status, or minus the signal that killed it."""
        return [int(line) for line in (self.folder / scene / "attempts").read_text().split()]

    def weights(self, scene: str) -> str:
        return str(json.loads((self.folder / scene / "end.json").read_text())["weights"])

    def record(self, scene: str) -> Run:
        return open_run(self.folder / scene)

"""The code of the guide, as somebody would type it: it runs, and does what the text says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from observatory.records import open_run

GUIDE = Path(__file__).parent.parent / "docs" / "write_an_instrument.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
INSTRUMENT, LOOP, LIGHTNING, READING = [text for language, text in BLOCKS if language == "python"]


def run(folder: Path, *blocks: str) -> None:
    (folder / "mine.py").write_text(INSTRUMENT)
    (folder / "script.py").write_text("\n".join(blocks))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "training goes on" not in done.stderr


def test_the_instrument_has_thirty_lines():
    assert len(INSTRUMENT.strip().split("\n")) <= 30
    assert any(isinstance(node, ast.ClassDef) for node in ast.parse(INSTRUMENT).body)


def test_it_watches_a_loop_of_ones_own(tmp_path):
    run(tmp_path, LOOP, READING)
    record = open_run(tmp_path / "runs/mine").instrument("margins")
    assert set(record) == {"mean", "quantiles", "wrong"}
    steps = record["mean"].steps
    assert steps[0] == 0 and steps[-1] == 200 and len(steps) > 20
    assert record["quantiles"].coordinates == {"quantile": ["0.1", "0.5", "0.9"]}
    assert (np.diff(record["quantiles"].values, axis=1) >= 0).all()
    assert record["wrong"].values[-1] < 0.1 < record["wrong"].values[0]  # it learns


def test_it_is_a_lightning_callback(tmp_path):
    run(tmp_path, LIGHTNING)
    record = open_run(tmp_path / "lightning_logs/version_0").instrument("margins")
    assert len(record["mean"]) > 5


@pytest.mark.parametrize(
    "name", ["security.md", "write_an_instrument.md", "your_own_physics_model.md", "architecture.md"]
)
def test_documents_name_files_and_functions_that_exist(name):
    """What stands in backticks and looks like a path of the repository is one."""
    root = GUIDE.parent.parent
    for path in re.findall(
        r"`((?:observatory|callbacks|docs|tests|experiments)/[\w/]+\.\w+)`", (GUIDE.parent / name).read_text()
    ):
        assert (root / path).is_file(), path

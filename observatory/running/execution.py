"""One run of a study: begun, resumed, or found finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from lightning.pytorch import LightningDataModule, Trainer

from observatory.records import open_run
from observatory.report import write_report
from observatory.running.configured import ConfiguredRun, quietly
from observatory.running.hparams import write_hparams
from observatory.running.plan import PlannedRun
from observatory.studies import FinishedRun

MARKER = "finished.json"  # written last and as a whole: without it a run is not finished
CLAIM = "run.yaml"  # written first: what the folder is for


@dataclass(frozen=True)
class RunFolder:
    """The folder of one planned run."""

    path: Path
    run: PlannedRun

    def claim(self) -> None:
        """Reserve the folder for this configuration.

        Raises:
            ValueError: if it holds a run of another configuration, or something else.
        """
        file = self.path / CLAIM
        if not file.is_file():
            if self.path.exists() and any(p.name != f".{CLAIM}.partial" for p in self.path.iterdir()):
                raise ValueError(f"{self.path} is not empty and holds no {CLAIM}; give another --output")
            self.path.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(self.run.config, sort_keys=False, allow_unicode=True)
            _replace(file, f"# {self.run.identity}\n{text}")
        elif file.read_text(encoding="utf-8").split("\n", 1)[0] != f"# {self.run.identity}":
            raise ValueError(
                f"{self.path} was made with another configuration, see its {CLAIM}; "
                "remove that folder or give another --output"
            )

    def finished(self) -> FinishedRun | None:
        """The run, if it came to its end."""
        file = self.path / MARKER
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        return FinishedRun(self.run.name, self.run.point, content["metrics"], self.path)

    def checkpoint(self) -> Path | None:
        """The newest checkpoint of a run that was interrupted; without one, what it left is removed."""
        found = sorted(self.path.glob("checkpoints/*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
        if found:
            return found[-1]
        for leftover in self.path.iterdir():
            if leftover.is_dir():
                shutil.rmtree(leftover)
            elif leftover.name != CLAIM:
                leftover.unlink()
        return None

    def finish(self, metrics: Mapping[str, float]) -> FinishedRun:
        """Write what belongs to the run as a whole, the marker at the very end."""
        write_hparams(self.path, self.run.point, initial_state(self.path), metrics)
        if self.run.config.get("report", True) and _is_recorded(self.path):
            write_report(self.path)
        content = {"configuration": self.run.identity, "metrics": dict(metrics)}
        _replace(self.path / MARKER, json.dumps(content, indent=1) + "\n")
        return FinishedRun(self.run.name, self.run.point, dict(metrics), self.path)


def execute(folder: RunFolder) -> FinishedRun:
    """Train, test, and write the page of one run; from its last checkpoint where there is one.

    Raises:
        KeyboardInterrupt: if somebody stopped it.
    """
    checkpoint = folder.checkpoint()
    cli = ConfiguredRun(folder.run.configuration(folder.path.parent))
    with quietly():
        cli.trainer.fit(
            cli.model,
            cli.datamodule,
            ckpt_path=checkpoint,
            weights_only=True if checkpoint is not None else None,
        )
        metrics = last_metrics(cli.trainer)
        if cli.trainer.interrupted:
            raise KeyboardInterrupt
        if cli.datamodule is not None and _has_test(cli.datamodule):
            cli.trainer.test(cli.model, cli.datamodule, verbose=False)
            metrics |= last_metrics(cli.trainer)
    return folder.finish(metrics)


def last_metrics(trainer: Trainer) -> dict[str, float]:
    """The last value of every metric."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def initial_state(folder: Path) -> dict[str, float]:
    """The scalars of every instrument's first look."""
    if not _is_recorded(folder):
        return {}
    run = open_run(folder)
    return {name: float(run[name].values[0]) for name in run if run[name].values.ndim == 1 and len(run[name])}


def _has_test(data: LightningDataModule) -> bool:
    return type(data).test_dataloader is not LightningDataModule.test_dataloader


def _is_recorded(folder: Path) -> bool:
    return (folder / "observatory" / "run.json").is_file()


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)

"""One run of a study: begun, resumed, or found finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningDataModule, Trainer

from observatory.fitting import has_test
from observatory.report import write_report
from observatory.report.hparams import initial_state, write_hparams
from observatory.running.bookmark import Bookmark
from observatory.running.configured import ConfiguredRun, quietly
from observatory.running.plan import PlannedRun
from observatory.studies import FinishedRun
from observatory.studies.study import END

CLAIM = "run.yaml"  # written first: what the folder is for
BOOKMARK = "resume.ckpt"  # while it is not finished
MARKER = "finished.json"  # written last: without it a run is not finished
CONFIGURATION = "config.yaml"  # resolved


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
            write_whole(file, f"# {self.run.identity}\n{text}")
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

    def bookmark(self) -> Path | None:
        """Where an interrupted run goes on; if nowhere, what it left is removed."""
        if (self.path / BOOKMARK).is_file():
            return self.path / BOOKMARK
        self.clear()
        return None

    def clear(self) -> None:
        """Remove what an interrupted run left."""
        for leftover in self.path.iterdir():
            if leftover.is_dir():
                shutil.rmtree(leftover)
            elif leftover.name != CLAIM:
                leftover.unlink()

    def finish(self, metrics: Mapping[str, float]) -> FinishedRun:
        """Write what belongs to the run as a whole, the marker at the very end."""
        write_hparams(self.path, self.run.point, initial_state(self.path), metrics)
        if self.run.config.get("report", True) and _is_recorded(self.path):
            write_report(self.path)
        write_whole(self.path / MARKER, json.dumps({"metrics": dict(metrics)}, indent=1) + "\n")
        (self.path / BOOKMARK).unlink(missing_ok=True)
        return FinishedRun(self.run.name, self.run.point, dict(metrics), self.path)


def execute(folder: RunFolder, *watching: Callback) -> FinishedRun:
    """Train, test, and write the page of one run; from where it was interrupted if it was.

    Args:
        folder: of the run.
        watching: callbacks of whoever wants to follow.

    Raises:
        KeyboardInterrupt: if somebody stopped it.
    """
    bookmark = folder.bookmark()
    cli = ConfiguredRun(folder.run.configuration(folder.path.parent))
    cli.trainer.callbacks += [Bookmark(folder.path / BOOKMARK), *watching]  # type: ignore[attr-defined]
    metrics = train(cli.trainer, cli.model, cli.datamodule, bookmark, folder.path / END)
    return folder.finish(metrics)


def train(
    trainer: Trainer,
    model: Any,
    data: LightningDataModule | None,
    bookmark: Path | None,
    end: Path | None = None,
) -> dict[str, float]:
    """Fit from the bookmark on, test where there is a test split, save the end; the last value of metrics.

    Raises:
        KeyboardInterrupt: if somebody stopped it.
    """
    with quietly():
        trainer.fit(model, data, ckpt_path=bookmark, weights_only=None if bookmark is None else True)
        metrics = last_metrics(trainer)
        if trainer.interrupted:
            raise KeyboardInterrupt
        if data is not None and has_test(data):
            trainer.test(model, data, verbose=False)
            metrics |= last_metrics(trainer)
        if end is not None:
            trainer.save_checkpoint(end, weights_only=False)
    return metrics


def last_metrics(trainer: Trainer) -> dict[str, float]:
    """The last value of every metric."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _is_recorded(folder: Path) -> bool:
    return (folder / "observatory" / "run.json").is_file()


def write_whole(file: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)

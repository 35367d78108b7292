"""The runs of an experiment, each with its complete configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observatory.running.configured import ConfiguredRun
from observatory.running.experiment import Experiment
from observatory.running.sweep import Point, fingerprint, point_name, sweep_points, with_values

SEEDS = ("seed_everything", "seed", "split_seed")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study."""

    name: str  # of its folder
    point: Point  # what distinguishes it, dotted key to value
    config: dict[str, Any]  # as `observatory fit --config` takes it, without where it is written

    @property
    def identity(self) -> str:
        """Equal for equal configurations."""
        return fingerprint(self.config)

    def configuration(self, root: Path) -> dict[str, Any]:
        """The configuration of a run that writes everything into `root / name`, and prints nothing."""
        logger = {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {
                "save_dir": str(root),
                "name": self.name,
                "version": "",
                "default_hp_metric": False,
            },
        }
        trainer = {"logger": logger, "enable_progress_bar": False, "enable_model_summary": False}
        given = self.config.get("trainer") or {}
        if not given.get("callbacks"):  # then no ModelCheckpoint either, but for Lightning's own
            trainer["enable_checkpointing"] = given.get("enable_checkpointing", False)
        return with_values(self.config, {f"trainer.{key}": value for key, value in trainer.items()})


def plan_runs(experiment: Experiment) -> list[PlannedRun]:
    """The runs of a study, in the order of its sweep.

    Raises:
        ValueError: if the sweep cannot be resolved.
    """
    points = sweep_points(experiment.sweep)
    names = [point_name(point) for point in points]
    names = [
        n if names.count(n) == 1 else f"{n}-{fingerprint(p)[:8]}" for n, p in zip(names, points, strict=True)
    ]
    return [
        PlannedRun(name, point, with_values(experiment.base, point))
        for name, point in zip(names, points, strict=True)
    ]


def covering(runs: Iterable[PlannedRun]) -> Iterator[PlannedRun]:
    """The first run, and those with a value that no run before has, so that every value is in one of them.

    Seeds of one type count as one value.
    """
    seen: set[tuple[str, str]] = set()
    for k, run in enumerate(runs):
        new = {
            (key, type(value).__name__ if key.rpartition(".")[2] in SEEDS else repr(value))
            for key, value in run.point.items()
        }
        if k == 0 or not new <= seen:
            yield run
        seen |= new


def validate(config: dict[str, Any]) -> None:
    """Resolve every class and argument of a configuration and make the objects, without running anything.

    Raises:
        SystemExit: with code 2 after one line on standard error, if something in it is unknown or misspelt.
        ValueError: if an object refuses its arguments.
    """
    ConfiguredRun(config, trainer=False)

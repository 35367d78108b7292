"""Runs of equal shape, trained as one stack."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import SaveConfigCallback

from observatory.callbacks.callback import ObservingCallback
from observatory.data import StackedData
from observatory.running.bookmark import Bookmark
from observatory.running.configured import ConfiguredRun
from observatory.running.execution import CONFIGURATION, END, RunFolder, execute, train, write_whole
from observatory.running.members import Members
from observatory.running.sweep import fingerprint, with_values
from observatory.studies import FinishedRun
from observatory.training import Ensemble

LARGEST = 64  # runs of a stack: more gain little, and their records are kept in memory
_VARIED = ("seed_everything", "model", "data")  # may differ within a stack where shapes do not

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unit:
    """Runs that are executed together: one, or several of equal shape as one stack."""

    folders: Sequence[RunFolder]

    @property
    def name(self) -> str:
        first = self.folders[0].run.name
        return first if len(self.folders) == 1 else f"{first} and {len(self.folders) - 1} more in one stack"

    def execute(self, *watching: Callback) -> list[FinishedRun]:
        """Train, test, and write the pages of all; from where they were interrupted if they were.

        Args:
            watching: callbacks of whoever wants to follow.

        Raises:
            KeyboardInterrupt: if somebody stopped it.
        """
        if len(self.folders) == 1:
            return [execute(self.folders[0], *watching)]
        stack = _Stack(self.folders)
        if reason := stack.cannot_run():
            log.warning("%s: trained one after the other, because %s", self.name, reason)
            return [execute(folder, *watching) for folder in self.folders]
        return stack.execute(*watching)


def units_of(folders: Sequence[RunFolder]) -> list[Unit]:
    """The runs in groups that can be trained as one, the others alone; in the order of the first of each.

    Each run's objects are made to find out, none of its data are loaded.
    """
    units: list[list[RunFolder]] = []
    led: list[tuple[str, ConfiguredRun, list[RunFolder]]] = []  # by stacks that may grow: their first run
    for folder in folders:
        common = fingerprint({key: v for key, v in folder.run.config.items() if key not in _VARIED})
        made = ConfiguredRun(folder.run.configuration(folder.path.parent), trainer=False)
        joined = next((unit for key, leader, unit in led if key == common and _equal(leader, made)), None)
        if joined is not None and len(joined) < LARGEST:
            joined.append(folder)
            continue
        units.append([folder])
        if _one_process(made) and not made.config["trainer"]["callbacks"] and _only_instruments(made):
            led.insert(0, (common, made, units[-1]))  # a full stack is followed by the next
    return [Unit(unit) for unit in units]


def _equal(one: ConfiguredRun, other: ConfiguredRun) -> bool:
    """Whether the two can be members of one stack."""
    data = [run.datamodule for run in (one, other) if run.datamodule is not None]
    return (
        len(data) == 2
        and Ensemble.why_not([one.model, other.model]) is None
        and StackedData.why_not(data) is None
    )


def _one_process(run: ConfiguredRun) -> bool:
    trainer = run.config["trainer"]
    alone = trainer["devices"] == "auto" and torch.cuda.device_count() < 2
    return trainer["num_nodes"] == 1 and (alone or trainer["devices"] in (1, "1"))


def _only_instruments(run: ConfiguredRun) -> bool:
    """Anything else in `observe:` belongs to a run of its own."""
    return all(isinstance(callback, ObservingCallback) for callback in run.observers)


class _Stack:
    """A group of runs that are trained as one, in files beside their folders.

    The bookmark of the stack and, once trained, its results are `.stack-<hash>.*`; the results are written as
    a whole, so that either all of its runs are trained or none is.
    """

    def __init__(self, folders: Sequence[RunFolder]) -> None:
        self.folders = folders
        name = hashlib.sha256("\n".join(folder.run.identity for folder in folders).encode()).hexdigest()[:12]
        self.bookmark = folders[0].path.parent / f".stack-{name}.ckpt"
        self.results = self.bookmark.with_suffix(".json")
        configurations = [folder.run.configuration(folder.path.parent) for folder in folders]
        self.runs = [ConfiguredRun(config, trainer=False) for config in configurations]
        alone = with_values(configurations[0], {"trainer.logger": False, "observe": {}})
        self.trainer = ConfiguredRun(alone).trainer
        self.trainer.callbacks = [  # type: ignore[attr-defined]
            callback
            for callback in self.trainer.callbacks  # type: ignore[attr-defined]
            if not isinstance(callback, SaveConfigCallback)  # each member's is saved in its folder
        ]
        self.ensemble = Ensemble([run.model for run in self.runs])
        self.data = StackedData([run.datamodule for run in self.runs])

    def cannot_run(self) -> str | None:
        """What keeps these runs from being stacked that only loading and calling them tells."""
        try:
            self.data.setup("fit")
            x, y = next(iter(self.data.train_dataloader()))
            with torch.random.fork_rng(devices=[]):
                copy.deepcopy(self.ensemble).batch_losses(x, y).sum().backward()
        except Exception as error:  # a network that draws numbers, or asks for the values of its inputs
            return str(error).split("\n", 1)[0]
        return None

    def execute(self, *watching: Callback) -> list[FinishedRun]:
        resumed = self.bookmark if self.bookmark.is_file() else None
        for folder, run in zip(self.folders, self.runs, strict=True):
            if resumed is None:
                folder.clear()
            run.parser.save(run.config, folder.path / CONFIGURATION, skip_none=False, overwrite=True)
        members = Members(
            self.data.members,
            [run.config_init["trainer"]["logger"] for run in self.runs],
            [run.observers for run in self.runs],  # type: ignore[misc]
            [run.config["seed_everything"] for run in self.runs],
        )
        self.trainer.callbacks += [members, Bookmark(self.bookmark), *watching]  # type: ignore[attr-defined]
        train(self.trainer, self.ensemble, self.data, resumed)
        self._save_ends()
        metrics = members.metrics(self.ensemble)
        names = [folder.run.name for folder in self.folders]
        write_whole(self.results, json.dumps(dict(zip(names, metrics, strict=True))))
        for logger in members.loggers:
            logger.finalize("success")
        done = [folder.finish(own) for folder, own in zip(self.folders, metrics, strict=True)]
        for file in (self.results, self.bookmark):
            file.unlink(missing_ok=True)
        return done

    def _save_ends(self) -> None:
        for k, folder in enumerate(self.folders):
            (folder.path / END).parent.mkdir(parents=True, exist_ok=True)
            content: dict[str, Any] = {
                "state_dict": {
                    name: value.clone() for name, value in self.ensemble.member(k).state_dict().items()
                },
                "epoch": self.trainer.current_epoch,
                "global_step": self.trainer.global_step,
                "pytorch-lightning_version": lightning.__version__,
            }
            torch.save(content, folder.path / END)


def finish_trained(folders: Sequence[RunFolder]) -> None:
    """Write what is missing of stacks that were killed after their training, between their pages."""
    by_name = {folder.run.name: folder for folder in folders}
    for file in folders[0].path.parent.glob(".stack-*.json"):
        for name, metrics in json.loads(file.read_text(encoding="utf-8")).items():
            if name in by_name and by_name[name].finished() is None:
                by_name[name].finish(metrics)
        file.with_suffix(".ckpt").unlink(missing_ok=True)
        file.unlink()

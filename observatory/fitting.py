"""`observatory fit`: Lightning's command line, with instruments."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning
from jsonargparse import ActionConfigFile
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

import observatory.callbacks
import observatory.data
import observatory.training  # their classes can then be named without their modules
from observatory.callbacks.callback import ObservingCallback, record_directory
from observatory.data import MissingData
from observatory.messages import refuse
from observatory.observing.station import Station
from observatory.records import open_run
from observatory.report import write_report
from observatory.report.hparams import chosen, initial_state, write_hparams
from observatory.training import SeedEveryStep


class _Parser(LightningArgumentParser):
    """Says what is wrong in one line."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        refuse(message)


class ObservatoryCLI(LightningCLI):
    """LightningCLI with a top-level `observe:` mapping of names to callbacks, beside `trainer.callbacks`."""

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.setdefault(
            "dump_header", [f"observatory {observatory.__version__}, lightning {lightning.__version__}"]
        )
        parser = _Parser(**kwargs)
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="A YAML file with the configuration."
        )
        return parser

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--observe", type=dict[str, Callback], default={}, help="Name to callback.")
        parser.add_argument(
            "--report", type=bool, default=True, help="After fit: test, and write the page of the run."
        )

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer", default={}).get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        observed = self._get(self.config_init, "observe", default={}).values()
        callbacks = [*given, *observed]
        if not any(isinstance(callback, SeedEveryStep) for callback in callbacks):
            callbacks.append(SeedEveryStep())  # a resumed run then draws what the uninterrupted one drew
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def after_fit(self) -> None:
        """Evaluate on the test split where there is one, write the page, say what was found."""
        if (
            not self._get(self.config_init, "report")
            or getattr(self.trainer, "fast_dev_run", False)
            or self.trainer.interrupted
        ):
            return
        if self.datamodule is not None and has_test(self.datamodule):
            self.trainer.test(self.model, self.datamodule, verbose=False)
        self._add_to_table()
        summarise(self.trainer)

    def _add_to_table(self) -> None:
        """TensorBoard's table of runs gets the settings, the first look and the final metrics."""
        trainer = self.trainer
        if trainer.is_global_zero and trainer.log_dir and isinstance(trainer.logger, TensorBoardLogger):
            folder = Path(trainer.log_dir)
            final = {name: float(value) for name, value in trainer.callback_metrics.items()}
            settings = chosen(self.config.get(str(self.subcommand), self.config).as_dict())
            write_hparams(folder, settings, initial_state(folder), final)


def fit(arguments: Sequence[str]) -> int:
    """Run `observatory fit ...` (or validate, test, predict); returns the exit code."""
    quiet()
    try:
        ObservatoryCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            args=None if list(arguments) == sys.argv[1:] else list(arguments),
        )
    except MissingData as error:
        refuse(str(error))
    return 0


def quiet() -> None:
    """Leave out what Lightning says of itself and not of the run."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    # data modules offer what a method without validation has no use for
    warnings.filterwarnings("ignore", message="You passed in a `val_dataloader`")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip: For seamless" not in record.getMessage()
    )


def summarise(trainer: Trainer) -> None:
    """Write the report of a finished run; print what was found, what looking cost, and where to look."""
    if not trainer.is_global_zero:
        return
    directory = record_directory(trainer)
    for line in [*_results(trainer), *_looks(trainer)]:
        print(line)
    if not (directory / "run.json").is_file():
        print(f"no record: no instrument was named in observe: or trainer.callbacks ({directory})")
        return
    print(f"report: {write_report(directory)}")
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        print(f"dashboard: tensorboard --logdir {directory.parent.parent}")


def _results(trainer: Trainer) -> list[str]:
    """The metrics at the end, and the first finding of each instrument."""
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.split("/")[0] in ("test", "val")}
    best = {k: v for k, v in metrics.items() if k.startswith("test/")} or metrics
    lines = [f"after {trainer.global_step} steps: " + ", ".join(f"{k} {v:.4g}" for k, v in best.items())]
    run = open_run(record_directory(trainer))
    for station in _stations(trainer):
        one = station.instrument
        findings = [f for f in type(one).findings(run.instrument(one.name)) if f.level == "result"]
        lines += [f"{one.name}: {finding.text}" for finding in findings[:1]]
    return lines


def _looks(trainer: Trainer) -> list[str]:
    stations = _stations(trainer)
    if not stations:
        return []
    taken, postponed = sum(s.taken for s in stations), sum(s.postponed for s in stations)
    spent, free = sum(s.budget.spent for s in stations), sum(s.budget.free for s in stations)
    training = max(s.budget.training for s in stations)
    share = spent / training
    line = (
        f"{taken} looks, {postponed} of them later than planned, took {spent:.2f} s beside {training:.1f} s "
    )
    line += f"of training: {100 * share:.1f} %"
    limits = [s.budget.max_overhead for s in stations if s.budget.max_overhead is not None]
    if len(limits) == len(stations):
        line += f", {'within' if share <= sum(limits) else 'above'} the budget of {100 * sum(limits):.3g} %"
    return [f"{line}; first and last look {free:.2f} s"]


def _stations(trainer: Trainer) -> list[Station]:
    watching = [c for c in trainer.callbacks if isinstance(c, ObservingCallback)]  # type: ignore[attr-defined]
    return [station for callback in watching for station in callback.observer.stations]


def has_test(data: LightningDataModule) -> bool:
    """Whether the module brings a test split."""
    return type(data).test_dataloader is not LightningDataModule.test_dataloader

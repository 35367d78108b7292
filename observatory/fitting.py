"""`observatory fit`: Lightning's command line, with instruments."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

import observatory.callbacks
import observatory.data
import observatory.training
from observatory.callbacks.callback import ObservingCallback, record_directory
from observatory.callbacks.configured import named_after


class _Parser(LightningArgumentParser):
    """Says what is wrong in one line."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"observatory: {_one_line(message)}", file=sys.stderr)
        raise SystemExit(2)


class ObservatoryCLI(LightningCLI):
    """LightningCLI with a top-level `observe:` mapping of names to callbacks, beside `trainer.callbacks`."""

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return _Parser(**kwargs)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--observe", type=dict[str, Callback], default={}, help="Name to callback.")
        parser.add_argument("--report", type=bool, default=True, help="Test, and write the page of the run, after fit.")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer", default={}).get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        observed = self._get(self.config_init, "observe", default={}).values()
        return super().instantiate_trainer(callbacks=[*given, *observed], **kwargs)

    def after_fit(self) -> None:
        """Evaluate on the test split where there is one, write the page, say what was found."""
        if not self._get(self.config_init, "report") or self.trainer.fast_dev_run or self.trainer.interrupted:
            return
        if self.datamodule is not None and _has_test(self.datamodule):
            self.trainer.test(self.model, self.datamodule, verbose=False)
        summarise(self.trainer)


def fit(arguments: Sequence[str]) -> int:
    """Run `observatory fit ...` (or validate, test, predict); returns the exit code."""
    ObservatoryCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        args=list(arguments),
    )
    return 0


def summarise(trainer: Trainer) -> None:
    """Write the report of a finished run and print five lines: what was found, and where to look."""
    ...


def _has_test(data: LightningDataModule) -> bool:
    return type(data).test_dataloader is not LightningDataModule.test_dataloader


def _one_line(message: str) -> str:
    return re.sub(r"\s+", " ", message).strip()

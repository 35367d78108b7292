"""One run out of a nested mapping instead of the command line."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from typing_extensions import override

from observatory.fitting import ObservatoryCLI


class ConfiguredRun(ObservatoryCLI):
    """The model, the data and the Trainer that a configuration describes, made but not run.

    Args:
        config: as `observatory fit --config` takes it.
        trainer: make the Trainer too, which asks for the devices that the configuration names.
    """

    def __init__(self, config: Mapping[str, Any], *, trainer: bool = True) -> None:
        self._with_trainer = trainer
        with quietly():
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_kwargs={"overwrite": True},
                run=False,
                args=copy.deepcopy(dict(config)),  # jsonargparse puts its own objects into what it reads
            )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_object(args)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return super().instantiate_trainer(**kwargs) if self._with_trainer else None  # type: ignore[return-value]

    @property
    def observers(self) -> list[Callback]:
        """What `observe:` names."""
        return list(self.config_init["observe"].values())


@contextmanager
def quietly() -> Iterator[None]:
    """Without what Lightning says of itself: seeds, devices, the end of an epoch."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for known in ("The number of training batches", "You passed in a `val_dataloader`"):
                warnings.filterwarnings("ignore", message=known)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""`observatory replay`: the instruments of an experiment over checkpoints that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from observatory.callbacks.callback import ObservingCallback, loader_of
from observatory.fitting import ObservatoryCLI, quiet
from observatory.looking.probe import Split
from observatory.observing.checkpoints import replay
from observatory.observing.instrument import Instrument
from observatory.observing.source import ProbeSource
from observatory.report import write_report


def replay_checkpoints(config: str | Path, checkpoints: Sequence[str | Path], out: str | Path) -> Path:
    """Let the instruments that `config` names look at `checkpoints`, with its model and its data.

    Args:
        config: as for `observatory fit`.
        checkpoints: files of Lightning or of a `state_dict`.
        out: folder of the run that is written.

    Returns:
        The report.

    Raises:
        ValueError: if the configuration names no instrument, or a checkpoint does not fit its model.
    """
    quiet()
    cli = ObservatoryCLI(
        LightningModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
        run=False, save_config_callback=None, args=["--config", str(config)],
    )  # fmt: skip
    instruments = _instruments(cli)
    if not instruments:
        raise ValueError(f"{config} names no instrument in observe: or trainer.callbacks")
    cli.model.configure_model()
    source = ProbeSource(_Loaders(cli.datamodule or cli.model))
    return write_report(
        replay(cli.model, checkpoints, instruments=instruments, probe=source, out=out).directory
    )


def _instruments(cli: ObservatoryCLI) -> list[Instrument]:
    watching = [c for c in cli.trainer.callbacks if isinstance(c, ObservingCallback)]  # type: ignore[attr-defined]
    return [station.instrument for callback in watching for station in callback.observer.stations]


class _Loaders:
    """The loader of a split, made when the first probe is drawn."""

    def __init__(self, data: LightningDataModule | LightningModule) -> None:
        self._data = data
        self._ready = False

    def __call__(self, split: Split) -> Any:
        if not self._ready:
            self._data.prepare_data()
            self._data.setup("fit")
            self._ready = True
        loaders = self._data.train_dataloader() if split == "train" else self._data.val_dataloader()
        return loader_of(loaders)

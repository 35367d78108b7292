"""Lightning's hooks, translated into calls of the observer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from observatory.looking.probe import Split
from observatory.looking.ranks import warn
from observatory.observing import Instrument
from observatory.observing.dashboard import Dashboard
from observatory.observing.observer import Observer
from observatory.observing.schedule import Schedule
from observatory.observing.source import ProbeSource

OF_EVERY_STEP = (
    "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"
)  # fmt: skip

_without_logger: WeakKeyDictionary[Trainer, Path] = WeakKeyDictionary()


class ObservingCallback(Callback):
    """Watches `Trainer.fit` with one or more instruments and changes nothing about it.

    Values go to every logger of the Trainer at `trainer.global_step`, the number of updates that the weights
    have seen, to `trainer.callback_metrics` (so that `EarlyStopping` and `ModelCheckpoint` can monitor them)
    and to the record `<log_dir>/observatory` (without a logger `<default_root_dir>/observatory/run_<k>`).

    Args:
        instruments: what looks.
        looks_per_decade: look at steps evenly spaced in ln(step), so many per factor of ten. This is the
            default schedule, with 12; give at most one of these four.
        every_n_steps: look every so many optimizer steps.
        every_n_epochs: look at the end of every so many epochs.
        at: look at these steps.
        max_overhead: seconds of observing per second of training; looks are postponed to keep below. None: no
            limit.
        strict: a failing instrument ends the run instead of being switched off with a warning.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        *,
        looks_per_decade: float | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        at: Sequence[int] | None = None,
        max_overhead: float | None = 0.05,
        strict: bool = False,
    ) -> None:
        schedule = Schedule(looks_per_decade, every_n_steps, every_n_epochs, at)
        self.observer = Observer(instruments, schedule=schedule, max_overhead=max_overhead, strict=strict)
        self.attached = False  # from the environment, unknown to the script
        self._step = -1
        self._pass_over_empty_hooks()

    def _pass_over_empty_hooks(self) -> None:
        for hook in OF_EVERY_STEP:
            if getattr(type(self), hook).__module__.startswith("lightning."):
                self._pass_over(hook)

    def _pass_over(self, hook: str) -> None:
        """Lightning calls what is callable, with all that belongs to a call, and asks every step.

        On this object only: `super().on_after_backward(...)` of a subclass still finds the method.
        """
        setattr(self, hook, None)

    @cached_property
    @override
    def state_key(self) -> str:  # Lightning asks for it at every hook
        # settings stay out of the key: a changed interval must not lose the state
        names = "+".join(s.instrument.name for s in self.observer.stations)
        # two equal keys are an error of the Trainer, and the script may have a callback of this name
        return self._generate_state_key(name=f"OBSERVATORY:{names}" if self.attached else names)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not _trial(trainer):
            with suppress(Exception):  # `start` tries again, and says what is wrong
                self.observer.prepare(pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        vars(self).pop("on_train_batch_start", None)  # an earlier `fit` may have passed over it
        if _trial(trainer):
            return
        self._step = trainer.global_step
        self.observer.start(
            pl_module,
            ProbeSource(partial(_loader, trainer)),
            step=self._step,
            epoch=trainer.current_epoch,
            total_steps=_planned_steps(trainer),
            directory=record_directory(trainer),
            dashboards=_dashboards(trainer),
            optimizers=trainer.optimizers,
            metadata={"seed": os.environ.get("PL_GLOBAL_SEED"), "module": type(pl_module).__name__},
        )
        self._publish(trainer)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.observer.listening:
            self.observer.offer_batch(batch)
        elif type(self).on_train_batch_start is ObservingCallback.on_train_batch_start:
            self._pass_over("on_train_batch_start")  # until the next `fit`: every probe is found

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._step:  # it stands still while gradients accumulate
            self._step = step
            self.observer.after_step(step, trainer.current_epoch)
            self._publish(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.observer.after_epoch(trainer.global_step, trainer.current_epoch)
        self._publish(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.observer.finish(trainer.global_step, trainer.current_epoch)
        self._publish(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.observer.close()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.observer.close()

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.observer.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.observer.load_state_dict(state_dict)

    def _publish(self, trainer: Trainer) -> None:
        if self.observer.latest:
            trainer.callback_metrics.update({k: torch.tensor(v) for k, v in self.observer.latest.items()})
            self.observer.latest.clear()


def record_directory(trainer: Trainer) -> Path:
    """The folder of a Trainer's record. Every rank must call it: it is broadcast from rank 0."""
    if not trainer.loggers:
        if trainer not in _without_logger:
            root = Path(trainer.default_root_dir) / "observatory"
            numbers = [int(p.name[4:]) for p in root.glob("run_*") if p.name[4:].isdigit()]
            _without_logger[trainer] = root / f"run_{max(numbers, default=-1) + 1}"
        return Path(trainer.strategy.broadcast(str(_without_logger[trainer])))
    logger = trainer.loggers[0]
    if _is(logger, "TensorBoardLogger") or _is(logger, "CSVLogger"):
        folder = str(logger.log_dir)
    else:  # as ModelCheckpoint does: such a logger's save_dir is shared by all of its runs
        folder = os.path.join(
            logger.save_dir or trainer.default_root_dir, str(logger.name), str(logger.version)
        )
    return Path(trainer.strategy.broadcast(folder)) / "observatory"


def _is(thing: Any, name: str) -> bool:
    """By name: the `pytorch_lightning` package has classes of its own, of the same names."""
    return any(cls.__name__ == name for cls in type(thing).__mro__)


def _dashboards(trainer: Trainer) -> list[Dashboard]:
    dashboards = []
    for logger in trainer.loggers:
        try:
            dashboards.append(_dashboard(logger))
        except Exception as error:  # it cannot open its file, and will say so when the loop logs
            warn(f"{type(logger).__name__} gets nothing from the observatory, training goes on: {error}")
    return dashboards


def _dashboard(logger: Any) -> Dashboard:
    writer = logger.experiment if _is(logger, "TensorBoardLogger") else None
    return Dashboard(lambda values, step: logger.log_metrics(values, step=step), writer)


def _loader(trainer: Trainer, split: Split) -> Any:
    return loader_of(trainer.train_dataloader if split == "train" else trainer.val_dataloaders)


def loader_of(loaders: Any) -> Any:
    """The first data loader out of whatever nesting of loaders a module has; None if there is none."""
    return next(_leaves(loaders), None)


def _leaves(loaders: Any) -> Iterator[Any]:
    for leaf in tree_leaves(loaders, is_leaf=_combined):
        if _combined(leaf):
            yield from _leaves(leaf.iterables)
        elif leaf is not None:
            yield leaf


def _combined(thing: Any) -> bool:
    return _is(thing, "CombinedLoader")


def _trial(trainer: Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which must leave no trace."""
    return bool(getattr(trainer, "fast_dev_run", False))


def _planned_steps(trainer: Trainer) -> int | None:
    try:
        planned = trainer.estimated_stepping_batches
    except Exception:  # Lightning refuses where the accumulation changes from epoch to epoch
        return None
    return int(planned) if planned != float("inf") else None

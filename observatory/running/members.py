"""The members of a stacked run, each watched and logged as in a run of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from typing_extensions import override

from observatory.callbacks.callback import ObservingCallback
from observatory.data import TensorData
from observatory.training import Ensemble

SEED = "PL_GLOBAL_SEED"


class _MemberOptimizer:
    """The optimizer of a stack, and of its class, with the weights and learning rates of one member."""

    def __init__(self, optimizer: torch.optim.Optimizer, share: float, parts: Mapping[int, Tensor]) -> None:
        self._optimizer, self._share, self._parts = optimizer, share, parts

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._optimizer)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [
            group | {"lr": group["lr"] * self._share, "params": [self._parts[id(p)] for p in group["params"]]}
            for group in self._optimizer.param_groups
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class _MemberTrainer:
    """The Trainer of a stack as one member's instruments see it: clock of the stack, data of the member."""

    def __init__(
        self, trainer: Trainer, data: TensorData, logger: Logger, optimizers: Sequence[_MemberOptimizer]
    ) -> None:
        self._trainer, self._data = trainer, data
        self.loggers, self.optimizers = [logger], optimizers
        self.callback_metrics: dict[str, Any] = {}

    @property
    def train_dataloader(self) -> Any:
        return self._data.train_dataloader()

    @property
    def val_dataloaders(self) -> Any:
        return self._data.val_dataloader()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


def _optimizers(
    trainer: Trainer, ensemble: Ensemble, members: Sequence[nn.Module]
) -> list[list[_MemberOptimizer]]:
    """Of each member."""
    stacked = list(ensemble.network.parameters())
    found = []
    for member, share in zip(members, ensemble.shares.tolist(), strict=True):
        parts = {id(whole): part for whole, part in zip(stacked, member.parameters(), strict=True)}
        found.append([_MemberOptimizer(optimizer, share, parts) for optimizer in trainer.optimizers])
    return found


_Watched = tuple[LightningModule, _MemberTrainer, Sequence[ObservingCallback]]


def _tell(watched: _Watched, hook: str, *arguments: Any) -> None:
    member, seen, callbacks = watched
    for callback in callbacks:
        getattr(callback, hook)(seen, member, *arguments)


class Members(Callback):
    """Leaves for every member of a stack what a run of its own leaves: its record, its curves, its metrics.

    Args:
        data: of each member.
        loggers: of each member.
        observers: instruments of each member; what they may spend together is what one run's may spend.
        seeds: of each member, for its record.
    """

    def __init__(
        self,
        data: Sequence[TensorData],
        loggers: Sequence[Logger],
        observers: Sequence[Sequence[ObservingCallback]],
        seeds: Sequence[Any],
    ) -> None:
        self.data, self.loggers, self.observers, self.seeds = data, loggers, observers, seeds
        self._watched: list[_Watched] = []
        for station in [s for own in observers for callback in own for s in callback.observer.stations]:
            if station.budget.max_overhead is not None:
                station.budget.max_overhead /= len(observers)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Ensemble)
        members = pl_module.members()
        self._watched = [
            (member, _MemberTrainer(trainer, data, logger, optimizers), callbacks)
            for member, data, logger, optimizers, callbacks in zip(
                members,
                self.data,
                self.loggers,
                _optimizers(trainer, pl_module, members),
                self.observers,
                strict=True,
            )
        ]
        before = os.environ.get(SEED)
        for watched, seed in zip(self._watched, self.seeds, strict=True):
            os.environ[SEED] = str(seed)  # where Lightning keeps a run's seed
            _tell(watched, "on_train_start")
        os.environ.pop(SEED) if before is None else os.environ.update({SEED: before})

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Ensemble)
        self._tell("on_train_batch_end", outputs, batch, batch_idx)
        step = trainer.global_step
        if step and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log({"train/loss": pl_module.losses}, trainer, step - 1)  # of the weights before the update

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell("on_train_epoch_end")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell("on_train_end")

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Ensemble)
        if not trainer.sanity_checking:
            self._log(_of_stage(pl_module.metrics, "val/"), trainer, trainer.global_step - 1)  # as Lightning

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Ensemble)
        self._log(_of_stage(pl_module.metrics, "test/"), trainer, trainer.global_step)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        for callback in [callback for own in self.observers for callback in own]:
            callback.observer.close()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for callback in [callback for own in self.observers for callback in own]:
            callback.observer.close()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"members": [{c.state_key: c.state_dict() for c in own} for own in self.observers]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for own, states in zip(self.observers, state_dict["members"], strict=True):
            for callback in own:
                callback.load_state_dict(states[callback.state_key])

    def metrics(self, ensemble: Ensemble) -> list[dict[str, float]]:
        """The last value of every metric of each member."""
        columns = {"train/loss": ensemble.losses} | ensemble.metrics
        numbers = {name: values.tolist() for name, values in columns.items()}
        return [
            {name: values[k] for name, values in numbers.items()}
            | {name: float(value) for name, value in seen.callback_metrics.items()}
            for k, (_, seen, _) in enumerate(self._watched)
        ]

    def _tell(self, hook: str, *arguments: Any) -> None:
        for watched in self._watched:
            _tell(watched, hook, *arguments)

    def _log(self, columns: Mapping[str, Tensor], trainer: Trainer, step: int) -> None:
        numbers = {name: values.tolist() for name, values in columns.items()}
        for k, logger in enumerate(self.loggers):
            mine = {name: values[k] for name, values in numbers.items()}
            logger.log_metrics(mine | {"epoch": trainer.current_epoch}, step=step)


def _of_stage(metrics: Mapping[str, Tensor], stage: str) -> dict[str, Tensor]:
    return {name: values for name, values in metrics.items() if name.startswith(stage)}

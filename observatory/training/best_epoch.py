"""Training ends with the weights of its best epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


class BestEpoch(Callback):
    """Keep the weights of the smallest validation loss, and put them back when training is over.

    What looks after `fit`, such as the test, sees those; a run resumed from a checkpoint knows them.

    Args:
        monitor: metric of the validation, the smaller the better.
    """

    def __init__(self, monitor: str = "val/loss") -> None:
        self.monitor = monitor
        self.best = math.inf
        self.epoch = -1
        self.weights: dict[str, Any] = {}

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(trainer.callback_metrics) or "none"
            raise ValueError(f"the validation logs no {self.monitor!r}; it logs {known}")
        value = float(trainer.callback_metrics[self.monitor])
        if value < self.best:
            self.best, self.epoch = value, trainer.current_epoch
            self.weights = {k: v.detach().clone() for k, v in pl_module.state_dict().items()}

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.weights:
            with torch.no_grad():
                pl_module.load_state_dict(self.weights)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "weights": self.weights}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.epoch = state_dict["best"], state_dict["epoch"]
        self.weights = state_dict["weights"]

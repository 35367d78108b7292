"""Training ends with the weights of its best epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override


class BestEpoch(Callback):
    """Keep the weights of the smallest validation loss, and put them back when training is over.

    What looks after `fit`, such as the test, sees those; a run resumed from a checkpoint knows them. Each
    member of an `Ensemble` has its own best epoch.

    Args:
        monitor: metric of the validation, the smaller the better.
    """

    def __init__(self, monitor: str = "val/loss") -> None:
        self.monitor = monitor
        self.best = torch.tensor(math.inf)  # () or one for each member (K,)
        self.epoch = torch.tensor(-1)
        self.weights: dict[str, Tensor] = {}

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        value = self._value(trainer, pl_module)
        better = value < self.best
        self.best = torch.where(better, value, self.best)
        self.epoch = torch.where(better, trainer.current_epoch, self.epoch)
        for name, now in pl_module.state_dict().items():
            kept = self.weights.get(name)
            if kept is None:
                self.weights[name] = now.detach().clone()
            elif better.ndim == 0 or now.shape[:1] != better.shape:
                if bool(better.all()):
                    kept.copy_(now)
            else:
                kept[better] = now[better]

    def _value(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        own = getattr(pl_module, "metrics", None)
        metrics = own if isinstance(own, dict) and self.monitor in own else trainer.callback_metrics
        if self.monitor not in metrics:
            known = ", ".join(trainer.callback_metrics) or "none"
            raise ValueError(f"the validation logs no {self.monitor!r}; it logs {known}")
        return torch.as_tensor(metrics[self.monitor]).detach().float().cpu()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.weights:
            pl_module.load_state_dict(self.weights)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "weights": self.weights}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.epoch = state_dict["best"], state_dict["epoch"]
        self.weights = state_dict["weights"]

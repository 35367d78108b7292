"""Any module that knows its loss is fitted by the one loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from observatory.training.optimisers import configured


def examples_in(batch: Any) -> int:
    """Number of examples: the length of the first tensor in the batch that has a length, else 1."""
    return next((len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim > 0), 1)


class Fit(LightningModule):
    """Minimise `model.training_loss(batch)`, a scalar, over the trainable parameters of the model.

    Logs train/loss and, if the model has `validation_metrics(batch)` returning scalars by name, their means
    over the validation and test data as val/<name> and test/<name>.

    Args:
        model: a module with `training_loss(batch)` and optionally `validation_metrics(batch)`.
        optimizer: makes the optimizer from the parameters.
        scheduler: makes the learning-rate schedule from the optimizer; default a constant rate.
        interval: what the schedule counts.

    Raises:
        TypeError: if the model has no loss.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        if not callable(getattr(model, "training_loss", None)):
            raise TypeError(f"{type(model).__name__} has no training_loss(batch) to minimise")
        self.model: Any = model
        self.optimizer, self.scheduler, self.interval = optimizer, scheduler, interval
        if callable(getattr(model, "validation_metrics", None)):
            # Lightning asks for validation data as soon as the class has these
            self.validation_step = self._validation_step  # type: ignore[method-assign]
            self.test_step = self._test_step  # type: ignore[method-assign]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.model.training_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=examples_in(batch))
        return loss

    def _validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def _test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Any) -> None:
        metrics: Mapping[str, Tensor | float] = self.model.validation_metrics(batch)
        named = {f"{stage}/{name}": value for name, value in metrics.items()}
        self.log_dict(named, batch_size=examples_in(batch), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return configured(self.parameters(), self.optimizer, self.scheduler, self.interval)

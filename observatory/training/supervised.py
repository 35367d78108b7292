"""A network learns from inputs and targets."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from observatory.training.optimisers import configured

_LOSSES: dict[str, type[nn.Module]] = {"cross_entropy": nn.CrossEntropyLoss, "mse": nn.MSELoss}


def mean_loss(loss: nn.Module, output: Tensor, y: Tensor) -> Tensor:
    """`loss(output, y)`, a scalar.

    Raises:
        ValueError: if outputs and targets would be broadcast against each other.
    """
    if isinstance(loss, nn.MSELoss) and output.shape != y.shape:
        raise ValueError(
            f"outputs of shape {tuple(output.shape)} against targets of shape {tuple(y.shape)}: "
            "give the targets the outputs' shape, for one number (N, 1)"
        )
    return loss(output, y)


class Supervised(LightningModule):
    """Minimise the mean loss of a network over batches (inputs, targets).

    Logs train/loss, val/loss, test/loss, and with integer targets the share of inputs whose largest output
    is the target: val/accuracy, test/accuracy.

    Args:
        network: any module; its first argument is the batch of inputs.
        loss: cross-entropy of integer classes, mean squared error, or a module that is called with
            (outputs, targets) and returns the mean over the batch.
        optimizer: makes the optimizer from the parameters.
        scheduler: makes the learning-rate schedule from the optimizer; default a constant rate.
        interval: what the schedule counts.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Literal["cross_entropy", "mse"] | nn.Module = "cross_entropy",
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        if isinstance(loss, str) and loss not in _LOSSES:
            raise ValueError(f"loss must be one of {', '.join(_LOSSES)} or a module, got {loss!r}")
        self.network = network
        self.loss = _LOSSES[loss]() if isinstance(loss, str) else loss
        self.optimizer, self.scheduler, self.interval = optimizer, scheduler, interval

    def forward(self, x: Any) -> Tensor:
        return self.network(x)

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = mean_loss(self.loss, self.network(x), y)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(y))
        return loss

    def validation_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        self._evaluate("val", *batch)

    def test_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        self._evaluate("test", *batch)

    def _evaluate(self, stage: str, x: Any, y: Tensor) -> None:
        output = self.network(x)
        self.log(f"{stage}/loss", mean_loss(self.loss, output, y), batch_size=len(y), sync_dist=True)
        if not y.is_floating_point() and output.ndim == y.ndim + 1:
            hits = (output.argmax(1) == y).float().mean()
            self.log(f"{stage}/accuracy", hits, prog_bar=True, batch_size=len(y), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return configured(self.parameters(), self.optimizer, self.scheduler, self.interval)

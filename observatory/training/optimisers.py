"""From the callables of a configuration to what Lightning's `configure_optimizers` returns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau


def configured(
    parameters: Iterable[nn.Parameter],
    optimizer: OptimizerCallable,
    scheduler: LRSchedulerCallable | None,
    interval: Literal["epoch", "step"],
) -> Any:
    """An optimizer of the trainable parameters, with its schedule if there is one.

    A schedule that reacts to a plateau watches val/loss.
    """
    made = optimizer([p for p in parameters if p.requires_grad])
    if scheduler is None:
        return made
    schedule: dict[str, Any] = {"scheduler": scheduler(made), "interval": interval}
    if isinstance(schedule["scheduler"], ReduceLROnPlateau):
        schedule["monitor"] = "val/loss"
    return {"optimizer": made, "lr_scheduler": schedule}

"""One network, trained side by side on several data sets."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from observatory.training.ensemble import Ensemble
from observatory.training.supervised import Supervised


class Replicas(Ensemble):
    """`copies` networks of equal initial weights in one stack, each on its own part of stacked data.

    Args:
        copies: K, as many as the data have members.
        network, loss, optimizer, scheduler, interval: as for `Supervised`.
    """

    def __init__(
        self,
        copies: int,
        network: nn.Module,
        loss: Literal["cross_entropy", "mse"] | nn.Module = "cross_entropy",
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        if copies < 1:
            raise ValueError(f"copies must be at least 1, got {copies}")
        super().__init__(
            [Supervised(copy.deepcopy(network), loss, optimizer, scheduler, interval) for _ in range(copies)]
        )

"""A linear map to be learnt by a two-layer linear network, whose course is exactly known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.data import Splits, TensorData, evaluation_loader
from observatory.solvable.deep_linear import balanced_start

STRENGTHS = (5.0, 3.0, 2.0, 1.2, 0.7, 0.4)


def random_map(strengths: Sequence[float], seed: int) -> Tensor:
    """Σ = U diag(σ) Vᵀ with random orthogonal U and V, (d, d), float64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, len(strengths), len(strengths), generator=generator, dtype=torch.float64)
    u, v = torch.linalg.qr(noise).Q
    return u @ torch.diag(torch.tensor(strengths, dtype=torch.float64)) @ v.mT


class LinearMap(TensorData):
    """The inputs are the unit vectors, the targets the columns of the map; every batch is all of them.

    Args:
        strengths: singular values σ of the map.
        steps_per_epoch: how often the whole is handed out in an epoch.
        seed: of the map.
    """

    def __init__(
        self, strengths: Sequence[float] = STRENGTHS, steps_per_epoch: int = 1000, seed: int = 0
    ) -> None:
        super().__init__(batch_size=len(strengths))
        self.strengths, self.steps_per_epoch, self.map_seed = tuple(strengths), steps_per_epoch, seed

    def splits(self) -> Splits:
        x = torch.eye(len(self.strengths))
        whole = (x, random_map(self.strengths, self.map_seed).mT.float().contiguous())
        return Splits(whole, whole, whole)

    def train_dataloader(self) -> DataLoader:
        x, y = self.dataset("train").tensors
        again = (self.steps_per_epoch, 1)
        return evaluation_loader(TensorDataset(x.repeat(again), y.repeat(again)), self.batch_size)


class BalancedLinear(nn.Sequential):
    """f(x) = W₂W₁x from the balanced start W₁ = √s₀ R Vᵀ, W₂ = √s₀ U Rᵀ (see `solvable.deep_linear`).

    Args:
        strengths: singular values σ of the map to be learnt.
        start: s₀.
        seed: of the map.
    """

    def __init__(self, strengths: Sequence[float] = STRENGTHS, start: float = 1e-3, seed: int = 0) -> None:
        d = len(strengths)
        super().__init__(nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False))
        weights = balanced_start(
            random_map(strengths, seed), start=start, generator=torch.Generator().manual_seed(seed)
        )
        with torch.no_grad():
            for layer, weight in zip(self, weights, strict=True):
                layer.weight.copy_(weight)  # type: ignore[operator]

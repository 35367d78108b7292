"""Error bars from random halves of the points, drawn without replacement.

A resample with replacement holds points twice, at distance zero. The variance of an estimate over halves is
σ²(2/N - 1/N) = σ²/N, that of the estimate from all points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.dimension.neighbours import Neighbours

HALVES = 20


@dataclass(frozen=True, eq=False)
class Halves:
    """Neighbours within halves of the points, read off the neighbours within all of them."""

    rank: Tensor  # (halves, n/2, k), int16: 1 for the nearest neighbour inside the half, 0 outside of it
    logarithms: Tensor  # (halves, n/2, k), ln r

    def at(self, rank: int) -> Tensor:
        """ln r of the neighbour of this rank, (halves, n/2); NaN where the neighbours kept are too few."""
        here = self.rank == rank
        found = torch.where(here, self.logarithms, 0.0).sum(-1)
        return torch.where(here.any(-1), found, torch.nan)

    def below(self, rank: int) -> Tensor:
        """Σ ln r over the neighbours of smaller rank, (halves, n/2)."""
        return torch.where((self.rank > 0) & (self.rank < rank), self.logarithms, 0.0).sum(-1)


def random_halves(neighbours: Neighbours, depth: int, *, number: int = HALVES) -> Halves:
    """Halves drawn by a generator of their own.

    Args:
        neighbours: of all points.
        depth: how many of them to look through: three times the rank that is needed inside a half.
        number: of halves.
    """
    n, device = len(neighbours), neighbours.distances.device
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(number, n, generator=generator).argsort(1)[:, : n // 2].to(device)
    member = torch.zeros(number, n, dtype=torch.bool, device=device).scatter_(1, chosen, True)
    indices = neighbours.indices[:, :depth]
    inside = torch.stack([one[indices[rows]] for one, rows in zip(member, chosen, strict=True)])
    rank = inside.cumsum(-1, dtype=torch.int16) * inside
    return Halves(rank, neighbours.distances[:, :depth].log()[chosen])

"""Error bars from random halves of the points, drawn without replacement.

A resample with replacement holds points twice, at distance zero. The variance of an estimate over halves is
σ²(2/N - 1/N) = σ²/N, that of the estimate from all points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from observatory.dimension.neighbours import Neighbours

HALVES = 20
AT_ONCE = 2**21  # numbers of a (points, neighbours, halves) array: what a cache holds


def inverse_dimensions_in_halves(
    neighbours: Neighbours, k: int, depth: int, *, number: int = HALVES
) -> Tensor:
    """ln r_k - mean_{j<k} ln r_j of every point of a half, its neighbours being those inside the half.

    For k = 2 it is the logarithm of the ratio of TwoNN. The neighbours are read off those within all points.

    Args:
        neighbours: of all points.
        k: rank inside the half.
        depth: how many neighbours to look through: three times the rank.
        number: of halves, drawn by a generator of their own.

    Returns:
        (number, n/2) float64; NaN where the neighbours looked through are too few.
    """
    n, device = len(neighbours), neighbours.distances.device
    chosen = torch.rand(number, n, generator=torch.Generator().manual_seed(0)).argsort(1)[:, : n // 2]
    member = torch.zeros(number, n, dtype=torch.uint8).scatter_(1, chosen, 1).T.contiguous().to(device)
    logarithms = neighbours.distances[:, :depth].log()
    logarithms = (logarithms - logarithms[:, :1]).float()  # of ratios: single precision does for an error
    rows = max(1, AT_ONCE // (depth * number))
    parts = zip(neighbours.indices[:, :depth].split(rows), logarithms.split(rows), strict=True)
    found = torch.cat([_inverse(member[indices], k, ln) for indices, ln in parts])  # (n, number)
    return found.T.gather(1, chosen.to(device)).double()


def _inverse(inside: Tensor, k: int, logarithms: Tensor) -> Tensor:
    """(points, halves) from memberships of neighbours (points, depth, halves) and ln r (points, depth)."""
    rank = inside.cumsum(1, dtype=torch.uint8)
    last = (rank == k) & (inside > 0)
    weights = last.float() - ((rank < k) & (inside > 0)).float() / (k - 1)
    found = (weights.mT @ logarithms[..., None])[..., 0]
    return torch.where(rank[:, -1] >= k, found, torch.nan)

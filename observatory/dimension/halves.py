"""Error bars from random halves of the points, drawn without replacement.

A resample with replacement holds points twice, at distance zero. The variance of an estimate over halves is
σ²(2/N - 1/N) = σ²/N, that of the estimate from all points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from observatory.dimension.neighbours import Neighbours, nearest_neighbours

HALVES = 20
AT_ONCE = 2**19  # numbers of a (points, neighbours, halves) array: what a cache holds


def inverse_dimensions_in_halves(
    neighbours: Neighbours, k: int, depth: int, *, number: int = HALVES
) -> Tensor:
    """ln r_k - mean_{j<k} ln r_j of every point of a half, its neighbours being those inside the half.

    For k = 2 it is the logarithm of the ratio of TwoNN. The neighbours are read off those within all points.

    Args:
        neighbours: of all points.
        k: rank inside the half.
        depth: how many neighbours to look through, three times the rank; they are searched where fewer are
            known.
        number: of halves, drawn by a generator of their own.

    Returns:
        (number, n/2) float64; NaN where the neighbours looked through are too few.
    """
    known = min(depth, len(neighbours) - 1)
    if neighbours.distances.shape[1] < known:
        neighbours = nearest_neighbours(neighbours.points, known, indices=True)
    n, device = len(neighbours), neighbours.distances.device
    drawn = torch.rand(number, n, generator=torch.Generator().manual_seed(0))
    chosen = drawn.topk(n // 2, sorted=False).indices
    member = torch.zeros(number, n, dtype=torch.uint8).scatter_(1, chosen, 1).T.contiguous().to(device)
    logarithms = neighbours.distances[:, :depth].log()
    logarithms = (logarithms - logarithms[:, :1]).float()  # of ratios: single precision does for an error
    falls = torch.cat([-logarithms.diff(dim=1), logarithms[:, -1:]], 1)  # (n, depth)
    rows = max(1, AT_ONCE // (depth * number))
    parts = zip(neighbours.indices[:, :depth].split(rows), falls.split(rows), strict=True)
    found = torch.cat(
        [_inverse(_rows_of(member, indices), k, fall) for indices, fall in parts]
    )  # (n, number)
    return found.T.gather(1, chosen.to(device)).double()


def _rows_of(member: Tensor, indices: Tensor) -> Tensor:
    """member[indices], several times faster."""
    return member.index_select(0, indices.flatten()).unflatten(0, indices.shape)


def _inverse(inside: Tensor, k: int, falls: Tensor) -> Tensor:
    """(points, halves) from memberships of neighbours (points, depth, halves).

    Σ ln r over the nearest m neighbours inside is, by parts, Σ_j min(rank_j, m) (ln r_j - ln r_{j+1}) with
    rank_j the number of neighbours inside up to the j-th: two products, and no comparison of each neighbour.
    """
    rank = inside.cumsum(1, dtype=torch.uint8 if inside.shape[1] < 256 else torch.int16)
    up_to, before = ((rank.clamp(max=m).float().mT @ falls[..., None])[..., 0] for m in (k, k - 1))  # Σ ln r
    return torch.where(rank[:, -1] >= k, up_to - before * k / (k - 1), torch.nan)

"""Dimension from the number of pairs closer than r."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.dimension.neighbours import CHUNK_BYTES, Neighbours, samples_of
from observatory.dimension.result import DEPTH, FEWEST, Dimension, neighbours_of, undefined
from observatory.dimension.search import TREE_DIMENSIONS, chunk_rows

QUANTILES = (0.001, 0.5)  # of the distances, between which the curve lies
CURVE_RADII = 30
SAMPLED = 2**20  # pairs of which quantiles are taken


@dataclass(frozen=True, eq=False)
class CorrelationIntegral:
    """C(r) = 2/(N(N-1)) #{i<j: |x_i - x_j| < r}."""

    radii: Tensor  # (R,), unit of x
    share: Tensor  # (R,), C(r)

    @property
    def slopes(self) -> Tensor:
        """d ln C/d ln r between neighbouring radii, (R - 1,): dimension against scale."""
        return self.share.log().diff() / self.radii.log().diff()


def correlation_dimension(
    x: Tensor | Neighbours, *, ranks: tuple[int, int] = (10, 20), dtype: torch.dtype | None = None
) -> Dimension:
    """d = ln(C(r₂)/C(r₁))/ln(r₂/r₁), r₁ and r₂ the medians of the distances to the neighbours of two ranks.

    Grassberger, Procaccia 1983 (Physica D 9, 189). The standard error is that of a U-statistic at
    given radii, from the scatter of the number of neighbours over points; radii that are medians of the same
    sample make the true one up to a factor of two smaller.

    Args:
        x: samples × units, (N, D), or their neighbours.
        ranks: of the two neighbours.
        dtype: of the matrix product of distances, as in `nearest_neighbours`.

    Raises:
        ValueError: if the ranks do not rise, or there are fewer samples.
    """
    low, high = ranks
    if not 1 <= low < high:
        raise ValueError(f"ranks must satisfy 1 ≤ first < second, got {ranks}")
    near = neighbours_of(x, high, DEPTH)
    if near.distances.shape[1] < high or len(near) < FEWEST:
        return undefined(near, (), len(near))
    radii = near.distances[:, [low - 1, high - 1]].quantile(0.5, dim=0)
    counts = neighbours_within(near, radii, dtype=dtype).double()  # (N, 2)
    mean = counts.mean(0)
    width = (radii[1] / radii[0]).log()
    value = (mean[1] / mean[0]).log() / width
    scatter = (counts[:, 1] / mean[1] - counts[:, 0] / mean[0]).std()
    error = 2 * scatter / len(near) ** 0.5 / width
    return Dimension(value, error, torch.tensor(len(near)), radii[0], radii[1], near.dropped)


def neighbours_within(
    near: Neighbours, radii: Tensor, *, dtype: torch.dtype | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """Number of other points closer than each radius, (n, R), int64.

    Points whose known neighbours reach beyond the largest radius are counted without another distance.
    """
    reach = near.distances[:, -1] >= radii.max()
    counts = torch.searchsorted(near.distances, radii.expand(len(near), -1).contiguous())
    rows = (~reach).nonzero().squeeze(1)
    if len(rows):
        counts[rows] = _count(near.points, rows, radii, dtype=dtype, chunk_bytes=chunk_bytes)
    return counts


def correlation_integral(
    x: Tensor,
    radii: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> CorrelationIntegral:
    """The share of pairs closer than r, at every radius, from all pairs.

    Args:
        x: samples × units, (N, D); duplicates count as they are.
        radii: ascending; default 30, evenly spaced in ln r between two quantiles of the distances,
            0.1 % and 50 %.
        dtype: of the matrix product of distances; default float64 on a CPU and float32 elsewhere.
        chunk_bytes: upper bound of the memory for distances.
    """
    points = samples_of(x)
    points = points - points.mean(0)
    radii = _radii(points) if radii is None else radii.to(points)
    counts = _count(
        points, torch.arange(len(x), device=x.device), radii, dtype=dtype, chunk_bytes=chunk_bytes
    )
    return CorrelationIntegral(radii, counts.sum(0).double() / (len(x) * (len(x) - 1)))


def _radii(x: Tensor) -> Tensor:
    """Log-spaced radii between two quantiles of the distances of random pairs."""
    generator = torch.Generator().manual_seed(0)
    size = min(SAMPLED // max(1, x.shape[1] // 64), len(x) * (len(x) - 1) // 2)
    first = torch.randint(len(x), (size,), generator=generator).to(x.device)
    shift = torch.randint(1, len(x), (size,), generator=generator).to(x.device)
    distances = (x[first] - x[(first + shift) % len(x)]).square().sum(1).sqrt()
    distances = distances[distances > 0].sort().values
    if not len(distances):
        raise ValueError(f"all {len(x)} samples are the same: they have no dimension to estimate")
    low, high = (distances[int(q * (len(distances) - 1))].log() for q in QUANTILES)
    return torch.exp(low + (high - low) * torch.linspace(0, 1, CURVE_RADII, dtype=x.dtype, device=x.device))


def _count(x: Tensor, rows: Tensor, radii: Tensor, *, dtype: torch.dtype | None, chunk_bytes: int) -> Tensor:
    """Points other than itself within each radius of each of the rows, (rows, R)."""
    if x.shape[1] <= TREE_DIMENSIONS and x.device.type == "cpu":
        return _count_by_tree(x, rows, radii)
    working = x.to(dtype or (torch.float64 if x.device.type == "cpu" else torch.float32))
    norms = torch.linalg.vector_norm(working, dim=1).square()
    limits = radii.square().to(working)
    counts = torch.empty(len(rows), len(radii), dtype=torch.int64, device=x.device)
    size = max(1, chunk_rows(len(x), working, chunk_bytes) // 4)  # comparing takes as much memory twice
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        block = torch.addmm(norms, working[part], working.T, alpha=-2)
        block.scatter_(1, part[:, None], torch.inf)
        within = limits - norms[part, None]  # (B, R)
        counts[start : start + size] = _below(block, within)
    return counts


def _below(block: Tensor, limits: Tensor) -> Tensor:
    """Entries of each row of (B, N) below each of its limits (B, R), ascending."""
    if limits.shape[1] <= 4:
        return torch.stack([(block < limit[:, None]).sum(1) for limit in limits.unbind(1)], 1)
    bins = torch.searchsorted(limits, block, right=True)  # the number of limits that an entry is not below
    histogram = torch.zeros(len(block), limits.shape[1] + 1, dtype=torch.int64, device=block.device)
    histogram.scatter_add_(1, bins, torch.ones_like(bins))
    return histogram[:, :-1].cumsum(1)


def _count_by_tree(x: Tensor, rows: Tensor, radii: Tensor) -> Tensor:
    """The same from a k-d tree, which counts whole branches."""
    import numpy as np
    from scipy.spatial import cKDTree

    tree = cKDTree(x.numpy())
    below = np.nextafter(radii.numpy(), 0)  # the tree counts distances up to and including r
    counts = [tree.query_ball_point(x[rows].numpy(), r, return_length=True) for r in below]
    return torch.from_numpy(np.stack(counts, 1)) - 1

"""One neighbour pass, which feeds every estimator of dimension."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from observatory.dimension.search import distances_alone, nearest
from observatory.dimension.selection import ascending

CHUNK_BYTES = 2**28
FEW = 16  # columns in which most data have no equal rows
SKETCH = 128  # subspaces of fewer dimensions than this are noticed
SAME = 1e-12  # of the median distance to the last neighbour: points closer than this are one


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Distances of each point to its nearest other points; duplicates are counted once."""

    distances: Tensor  # (n, k), ascending along k, float64
    located: Tensor | Callable[[], Tensor] = field(repr=False)  # the indices, or what finds them
    points: Tensor  # (n, D), centred, float64; an orthogonal image with fewer columns where they suffice
    kept: Tensor  # (n,), rows of the data that the points are
    dropped: int  # duplicates
    searched_again: int  # points with neighbours too close for the matrix product

    def __len__(self) -> int:
        return len(self.distances)

    @cached_property
    def indices(self) -> Tensor:
        """(n, k), rows of `points`; searched when they are read, unless they came with the distances."""
        return self.located() if callable(self.located) else self.located

    @cached_property
    def logarithms(self) -> Tensor:
        """(n, k), of the distances: read by all estimators from ratios."""
        return self.distances.log()

    @cached_property
    def ratios(self) -> Tensor:
        """(n,), the logarithms of r₂/r₁, ascending; behind them NaN of ties."""
        return ascending(ratio_or_nan(self.logarithms.select(1, 1) - self.logarithms.select(1, 0)))

    @cached_property
    def scales(self) -> Tensor:
        """(k,), mean distance to the neighbour of each rank."""
        return self.distances.new_ones(len(self)) @ self.distances / len(self)


def nearest_neighbours(
    x: Tensor,
    k: int = 64,
    *,
    dtype: torch.dtype | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    indices: bool = False,
) -> Neighbours:
    """The k nearest neighbours of every point, in time N²D and memory chunk_bytes + 16 N k.

    Args:
        x: samples × units, (N, D), floating.
        k: number of neighbours, below N; fewer where duplicates leave fewer points.
        dtype: of the matrix product of distances; default float64 on a CPU and float32 elsewhere. Rows whose
            neighbours are too close for the precision are searched again in a higher one.
        chunk_bytes: upper bound of the memory for distances.
        indices: search them with the distances even where they cost more; by default another search finds
            them when they are read, as error bars from random halves do.

    Raises:
        ValueError: if x is not samples × units, has fewer than 3 samples or at most k of them, or is not
            finite.
    """
    points = samples_of(x)
    if not 1 <= k < len(points):
        raise ValueError(f"k={k} neighbours of {len(points)} samples: give 1 ≤ k < number of samples")
    if dtype is None:
        dtype = torch.float64 if x.device.type == "cpu" else torch.float32
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"distances are computed in float32 or float64, not in {dtype}")
    search = partial(nearest if indices else distances_alone, dtype=dtype, chunk_bytes=chunk_bytes)
    kept = distinct_rows(points)
    points = _centred(points if len(kept) == len(points) else points[kept])
    while True:
        points = reduced(points)
        fewer = min(k, len(points) - 1)
        if fewer < 1:
            empty = points.new_empty(len(points), 0)
            return Neighbours(empty, empty.long(), points, kept, len(x) - len(kept), 0)
        distances, found, again = search(points, fewer)
        located = partial(_indices, points, fewer, dtype, chunk_bytes) if found is None else found
        near = Neighbours(distances, located, points, kept, len(x) - len(kept), again)
        distinct = _distinct(near)
        if bool(distinct.all()):
            return near
        points, kept = _centred(points[distinct]), kept[distinct]


def ratio_or_nan(log_ratio: Tensor) -> Tensor:
    """NaN instead of the logarithm of a ratio that is 1 or infinite: of ties, and of distances of zero."""
    return torch.where((log_ratio > 0) & (log_ratio < torch.inf), log_ratio, torch.nan)


def samples_of(x: Tensor) -> Tensor:
    """x as finite samples × units in float64.

    Raises:
        ValueError: if it is not that.
    """
    if x.ndim != 2:
        raise ValueError(
            f"expected samples × units, got a tensor of shape {tuple(x.shape)}; flatten what lies behind the "
            "first axis, x.flatten(1)"
        )
    if len(x) < 3:
        raise ValueError(f"a dimension needs at least 3 samples, got {len(x)}")
    if bad := samples_not_finite(x):
        raise ValueError(f"{bad} of {len(x)} samples are not finite")
    return x.detach().double()


def samples_not_finite(x: Tensor) -> int:
    """How many rows of (N, D) hold a number that is not finite."""
    if bool(torch.isfinite(x.detach().sum())):  # a tenth of the time of looking at every number
        return 0
    return int((~torch.isfinite(x)).any(1).sum())


def distinct_rows(x: Tensor) -> Tensor:
    """Indices of the first of each set of equal rows of (N, D), ascending."""
    few = x[:, :: max(1, x.shape[1] // FEW)]
    sums = _bits(few).sum(1)  # modulo 2⁶⁴, of equal rows the same
    if bool((ascending(sums).diff() != 0).all()):
        return torch.arange(len(x), device=x.device)
    chosen = _first_of_equal(few)
    return chosen if len(chosen) == len(x) or few.shape == x.shape else _first_of_equal(x)


def _bits(x: Tensor) -> Tensor:
    return (x + 0.0).view(torch.int64)  # -0.0 becomes 0.0


def _first_of_equal(x: Tensor) -> Tensor:
    """The same by a number for each row, of all bits of all columns; rows of one number are compared."""
    weights = torch.randint(-(2**62), 2**62, (x.shape[1],), generator=torch.Generator().manual_seed(0))
    hashed = (_mixed(_bits(x)) * (2 * weights + 1).to(x.device)).sum(1)  # modulo 2⁶⁴
    _, inverse = hashed.unique(return_inverse=True)
    order = torch.arange(len(x), device=x.device)
    first = torch.full_like(order, len(x)).scatter_reduce(0, inverse, order, "amin")[inverse]
    return ((first == order) | (x != x[first]).any(1)).nonzero().squeeze(1)


def _mixed(bits: Tensor) -> Tensor:
    """Integers in which each bit depends on all: in whole numbers most of the lower ones are zero.

    The finaliser of SplitMix64 (Steele, Lea, Flood 2014, OOPSLA).
    """
    bits = (bits ^ (bits >> 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ (bits >> 27)) * -0x6B2FB644ECCEEE15
    return bits ^ (bits >> 31)


def reduced(x: Tensor) -> Tensor:
    """Coordinates of centred points within the subspace they span, if it has fewer than half the dimensions.

    Distances stay what they are, to ε times the size of the cloud. Where the first rows do not show that it
    has more, a random sketch of all rows does: it has their rank with probability one.
    """
    n, d = x.shape
    size = min(SKETCH, d // 2 + 1, n)
    if d < 2 or size < 1:
        return x
    if size == n:  # so few points span no more dimensions than there are of them
        return torch.linalg.qr(x.mT, mode="r").R.mT
    if _independent(x[:size]):
        return x
    mix = torch.randn(size, n, dtype=x.dtype, generator=torch.Generator().manual_seed(0)).to(x.device)
    sketch = mix @ x
    if _independent(sketch):
        return x
    _, s, basis = torch.linalg.svd(sketch, full_matrices=False)
    rank = int((s > s[0] * 100 * torch.finfo(x.dtype).eps * size).sum())
    return x if rank == len(s) else x @ basis[: max(rank, 1)].mT


def _independent(rows: Tensor) -> bool:
    """Whether they are, as their products tell: these see ranks to √ε only, but cheaply."""
    spectrum = torch.linalg.eigvalsh(rows @ rows.mT)
    return bool(spectrum[0] > spectrum[-1] * 100 * torch.finfo(rows.dtype).eps * len(rows))


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _indices(points: Tensor, k: int, dtype: torch.dtype, chunk_bytes: int) -> Tensor:
    return nearest(points, k, dtype=dtype, chunk_bytes=chunk_bytes)[1]


def _distinct(near: Neighbours) -> Tensor:
    """False for points that are within `SAME` of one of lower index, (n,)."""
    limit = SAME * near.distances[:, -1].median()
    alone = near.distances[:, 0] > limit
    if bool(alone.all()):
        return alone
    own = torch.arange(len(near), device=near.distances.device)[:, None]
    return ~((near.distances <= limit) & (near.indices < own)).any(1)

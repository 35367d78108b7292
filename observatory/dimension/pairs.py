"""Nearest neighbours from every pair once: tiles on and below the diagonal of the matrix of distances.

A tile serves the points of its rows and those of its columns. The points are in random order, so that the
first columns are a sample of everybody's distances, and an order statistic of it bounds the k-th smallest of
all from above, nearly always. The few entries below the bounds are kept and sorted at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from observatory.dimension.selection import places

TILE = 1024  # most rows and columns of a tile: what a cache holds and a matrix product is fast for
LEAST = 512  # rows and columns of a tile at least
CERTAINTY = 3  # standard deviations by which that bound exceeds the k-th smallest
SPARE = 8  # entries beyond the k-th that are looked at: ties of the leading bits
ENTRY_BYTES = 48  # of one that is kept, while all are sorted

Found = tuple[NDArray, NDArray, NDArray]  # point, other point (int32) and squared distance


def worthwhile(n: int, k: int, chunk_bytes: int) -> bool:
    """Whether several tiles serve few neighbours each, and twice as many entries fit into the memory."""
    return n > TILE and 8 * k <= n and 2 * n * k * ENTRY_BYTES + 8 * TILE**2 <= chunk_bytes


def nearest_by_pairs(x: Tensor, k: int, chunk_bytes: int) -> tuple[Tensor, Tensor]:
    """Squared distances to the k nearest other points and their indices, ascending, each (n, k).

    Args:
        x: centred points on a CPU, in the dtype of the matrix product, (n, D).
        k: 1 ≤ k < n.
        chunk_bytes: memory for distances, `worthwhile`.

    Returns:
        Squares in float64, wrong by ε max‖x‖²; NaN in rows whose bound was too small or that have many ties,
        to be searched again.
    """
    n = len(x)
    shuffle = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    bounds = np.full(n, np.inf, dtype=x.numpy().dtype)
    kept: list[Found] = []
    entries, most = 0, chunk_bytes // ENTRY_BYTES
    for new in _entries(x, shuffle, bounds, k):
        kept.append(new)
        entries += len(new[0])
        if entries > most:
            squares, others = _closest(n, k, kept)
            np.minimum(bounds, np.where(np.isnan(squares[:, -1]), -np.inf, squares[:, -1]), out=bounds)
            kept = [_flat(squares, others)]
            entries = len(kept[0][0])
    squares, others = _closest(n, k, kept)
    squares[np.isinf(squares[:, -1])] = np.nan
    back = shuffle.argsort()
    return torch.from_numpy(squares)[back].double(), shuffle[torch.from_numpy(others)[back]]


def _sample(k: int, n: int, size: int) -> tuple[int, int]:
    """Number of distances of which the bound of a point is taken, and its rank among them.

    Selecting among s takes 2 s ns, each entry kept takes 45 ns and there are CERTAINTY √(k n/s) too many: the
    least of the sum is near 10 (k n)^⅓.
    """
    number = min(size, round(10 * (k * n) ** (1 / 3)))
    mean = k * number / n  # of the k smallest, as many are in the sample
    deviation = math.sqrt(mean * (1 - number / n))
    return number, min(number, math.ceil(mean + CERTAINTY * deviation) + 1)


def _entries(x: Tensor, shuffle: Tensor, bounds: NDArray, k: int) -> Iterator[Found]:
    """Entries below the bounds of their points, from rows and columns of each tile; sets the bounds."""
    n = len(x)
    size = min(TILE, max(LEAST, n // 4))  # half of the tiles on the diagonal is computed in vain
    sample, rank = _sample(k, n, size)
    x = x[shuffle]
    norms = torch.linalg.vector_norm(x, dim=1).square()
    buffer, below = x.new_empty(size**2), np.empty(size**2, dtype=bool)
    for i in range(0, n, size):
        rows = slice(i, i + size)
        for j in range(0, i + 1, size):
            columns = slice(j, j + size)
            shape = (len(x[rows]), len(x[columns]))
            area = math.prod(shape)
            squares = torch.add(norms[rows, None], norms[columns], out=buffer[:area].view(shape))
            squares.addmm_(x[rows], x[columns].T, alpha=-2)
            if i == j:
                squares.fill_diagonal_(math.inf)  # not its own neighbour
            tile, mask = squares.numpy(), below[:area].reshape(shape)
            if j == 0:
                bounds[rows] = np.partition(tile[:, :sample], rank - 1, axis=1)[:, rank - 1]
            np.less(tile, bounds[rows, None], out=mask)
            yield _chosen(tile, mask, i, j)
            if i != j:
                other, point, value = _chosen(tile, np.less(tile, bounds[columns], out=mask), i, j)
                yield point, other, value


def _chosen(tile: NDArray, mask: NDArray, i: int, j: int) -> Found:
    """Row, column and value of some entries, the first one of the tile being (i, j)."""
    place = places(mask.ravel())
    value = tile.ravel().take(place)
    rows, width = tile.shape
    number = np.diff(place.searchsorted(np.arange(rows + 1) * width))
    place -= np.repeat(np.arange(rows) * width - j, number)
    return np.repeat(np.arange(i, i + rows, dtype=np.int32), number), place.astype(np.int32), value


def _closest(n: int, k: int, kept: Sequence[Found]) -> tuple[NDArray, NDArray]:
    """Of each point the k smallest values, ascending, and the other points; infinite where there are fewer.

    One sort of integers does it: point, the leading bits of the value, and the number of the entry. NaN in
    rows where these bits do not tell which are the smallest.
    """
    point, other, value = (np.concatenate(part) for part in zip(*kept, strict=True))
    if not len(value):  # all distances are the same
        return np.full((n, k), np.inf, value.dtype), np.zeros((n, k), other.dtype)
    number_bits = len(value).bit_length()
    free = 63 - number_bits - n.bit_length()
    leading = np.abs(value).view(f"i{value.itemsize}")  # ordered like the values
    leading -= leading.min()
    leading >>= max(0, int(leading.max()).bit_length() - free)
    key = point.astype(np.int64)
    key <<= free
    key |= leading
    key <<= number_bits
    key |= np.arange(len(key))
    key.sort()
    start = np.searchsorted(key, np.arange(n + 1) << (free + number_bits))
    at = start[:-1, None] + np.arange(k + SPARE)
    missing = at >= start[1:, None]
    first = key.take(at, mode="clip")
    tied = ~missing[:, -1] & ((first[:, k - 1] ^ first[:, -1]) >> number_bits == 0)
    first &= (1 << number_bits) - 1
    squares, others = value.take(first), other.take(first)
    squares[missing] = np.inf
    squares[tied] = np.nan
    order = squares.argsort(axis=1, kind="stable")[:, :k]
    return np.take_along_axis(squares, order, 1), np.take_along_axis(others, order, 1)


def _flat(squares: NDArray, others: NDArray) -> Found:
    point, rank = np.nonzero(np.isfinite(squares))
    return point.astype(np.int32), others[point, rank], squares[point, rank]

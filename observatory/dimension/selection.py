"""The smallest entries of rows on a CPU, chosen by NumPy, which partitions and sorts with vectors."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MINIMA = 4  # groups of columns for each entry that is wanted


def ascending(x: Tensor) -> Tensor:
    """x sorted over the last axis, NaN last."""
    if x.device.type != "cpu" or x.requires_grad:
        return x.sort(-1).values
    return torch.from_numpy(np.sort(x.numpy(), axis=-1))


def smallest_values(block: NDArray, k: int) -> NDArray:
    """The k smallest entries of each row of (B, n), ascending; the block is overwritten."""
    block.partition(k - 1, axis=1)
    values = block[:, :k]
    values.sort(axis=1)
    return values


def smallest(block: NDArray, k: int) -> tuple[NDArray, NDArray]:
    """The k smallest entries of each row of (B, n), ascending, and their columns.

    The k-th smallest minimum of disjoint groups of columns is a bound that k entries of the row do not exceed
    and few others do. Those are sorted: where many are equal, they are many.
    """
    rows, n = block.shape
    groups = max(1, n // (MINIMA * k))
    width = n // groups
    minima = block[:, : groups * width].reshape(rows, groups, width).min(1) if groups > 1 else block.copy()
    minima.partition(k - 1, axis=1)
    place = places((block <= minima[:, k - 1 : k]).ravel())
    value = block.ravel().take(place)
    first = np.arange(rows + 1) * n
    start = place.searchsorted(first)  # of each row among the places
    at = start[:-1, None] + np.arange(np.diff(start).max())
    candidates = value.take(at, mode="clip")
    candidates[at >= start[1:, None]] = np.inf
    order = candidates.argsort(axis=1)[:, :k] + start[:-1, None]
    return value.take(order), place.take(order) - first[:-1, None]


def places(mask: NDArray) -> NDArray:
    """Where a flat mask is true that rarely is: `np.flatnonzero` by words of eight, twice as fast."""
    whole = len(mask) // 8 * 8
    words = mask[:whole].view(np.uint64)
    at = np.flatnonzero(words != 0)
    inside = np.flatnonzero(words.take(at).view(bool))
    place = at.take(inside >> 3)
    place <<= 3
    inside &= 7
    place += inside
    return np.concatenate([place, whole + np.flatnonzero(mask[whole:])])

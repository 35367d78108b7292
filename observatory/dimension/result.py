"""What an estimator of dimension returns, and what it starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from observatory.dimension.neighbours import Neighbours, nearest_neighbours

FEWEST = 20  # valid points below which a dimension is not given
DEPTH = 64  # neighbours that are kept


@dataclass(frozen=True, eq=False)
class Dimension:
    """An intrinsic dimension, float64; NaN with a reason where there are too few valid points.

    An error bar from random halves takes longer than the value: it is computed when it is read, and until the
    result is dropped the neighbours are kept for it.
    """

    value: Tensor  # shape (...)
    error: Tensor | Callable[[], Tensor] = field(repr=False)  # the standard error, or what computes it
    points: Tensor  # valid points it rests on, shape (...), int64
    near: Tensor  # mean distance to the nearer of the neighbours used, shape (...): the scale begins here
    far: Tensor  # mean distance to the farther one, shape (...)
    dropped: int = 0  # duplicates, counted once each
    reason: str = ""  # why the value is NaN

    @cached_property
    def standard_error(self) -> Tensor:
        """Of the value, shape (...)."""
        return self.error() if callable(self.error) else self.error


def neighbours_of(x: Tensor | Neighbours, rank: int, depth: int = DEPTH) -> Neighbours:
    """Neighbours up to `rank` at least: those given, or the `depth` nearest within samples × units.

    Raises:
        ValueError: if x has no more than `rank` samples, all of them are the same, or the neighbours given
            are fewer.
    """
    if isinstance(x, Tensor):
        if x.ndim == 2 and 3 <= len(x) <= rank:
            raise ValueError(
                f"{rank} neighbours are asked of {len(x)} samples: at least {rank + 1} are needed"
            )
        x = nearest_neighbours(x, max(1, min(max(rank, depth), len(x) - 1)))
        if len(x) < 2:
            raise ValueError(
                f"all {len(x) + x.dropped} samples are the same: they have no dimension to estimate"
            )
    elif x.distances.shape[1] < rank and x.dropped == 0:
        raise ValueError(f"{rank} neighbours are needed, {x.distances.shape[1]} are given")
    return x


def undefined(neighbours: Neighbours, shape: tuple[int, ...], points: Tensor | int) -> Dimension:
    """NaN, because too few points are left."""
    nan = neighbours.distances.new_full(shape, torch.nan)
    valid = torch.as_tensor(points, device=nan.device).expand(shape)
    least = int(valid.min()) if valid.numel() else 0
    given = len(neighbours) + neighbours.dropped
    reason = f"{least} valid points are left of {given}, at least {FEWEST} are needed"
    return Dimension(nan, nan, valid, nan, nan, neighbours.dropped, reason)

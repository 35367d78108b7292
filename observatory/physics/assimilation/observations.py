"""Batches of observed trajectories: checks, gaps, spreads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from observatory.physics.assimilation.shooting import Query


def checked(batch: Any, observed: Sequence[str], systems: int) -> tuple[Query, Tensor]:
    """A batch ((which, times), values) of trajectories.

    Raises:
        ValueError: for shapes that do not fit, trajectories that do not exist, components never observed.
    """
    (which, times), values = batch
    if values.shape != (*times.shape, len(observed)) or which.shape != times.shape[:1]:
        raise ValueError(
            f"a batch is ((which (B,), times (B, T)), values (B, T, {len(observed)})) for the observed "
            f"{', '.join(observed)}; got {tuple(which.shape)}, {tuple(times.shape)}, {tuple(values.shape)}"
        )
    if int(which.max()) >= systems:
        raise ValueError(f"trajectory {int(which.max())} of systems={systems}: they are counted from 0")
    empty = values.isnan().all(1)
    if empty.any():
        b, f = empty.nonzero()[0].tolist()
        raise ValueError(f"{observed[f]} of trajectory {int(which[b])} was never observed: all is NaN")
    return Query(which, times), values


def position_of(name: str, names: Sequence[str], kind: str) -> int:
    """Where a name stands.

    Raises:
        ValueError: if it is not there.
    """
    if name not in names:
        raise ValueError(f"there is no {kind} {name!r}; there are {', '.join(names)}")
    return list(names).index(name)


def spread_of(values: Tensor) -> Tensor:
    """Standard deviation over the observed times of values (B, T, F), shape (B, F); 1 where it is 0."""
    mean = values.nanmean(1, keepdim=True)
    spread = (values - mean).square().nanmean(1).sqrt()
    return torch.where(spread > 0, spread, 1.0)


def filled(values: Tensor) -> Tensor:
    """Gaps of values (B, T, F) filled with the observation before, or at the beginning the first one."""
    known = values.isfinite()
    position = torch.arange(values.shape[1], device=values.device)[:, None]
    before = torch.where(known, position, -1).cummax(1).values
    first = known.int().argmax(1, keepdim=True)
    return values.gather(1, torch.where(before >= 0, before, first))

"""Correlation functions of positions on a regular grid of times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from observatory.numerics.correlate import correlation_sums

Velocity = Literal["half_step", "central", "given"]
VELOCITIES = ("half_step", "central", "given")
Trajectories = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray]
BLOCKS = 32  # of a single long trajectory, for resampling


@dataclass(frozen=True)
class Correlations:
    """Σ of products and their number in each block of origins, so that blocks can be drawn again."""

    sums: dict[str, Tensor]  # of each correlation, (blocks, lags)
    counts: dict[str, Tensor]  # products behind each sum, (blocks, lags)

    def mean(self, name: str, weights: Tensor | None = None) -> Tensor:
        """C(l) weighted by the number of products at each lag, (..., lags).

        Args:
            name: of the correlation.
            weights: how often each block counts, (..., blocks); default once.
        """
        sums, counts = self.sums[name], self.counts[name]
        if weights is None:
            return sums.sum(0) / counts.sum(0)
        return (weights.to(sums) @ sums) / (weights.to(counts) @ counts)

    @property
    def blocks(self) -> int:
        return next(iter(self.sums.values())).shape[0]


def as_trajectories(trajectories: Trajectories) -> list[Tensor]:
    """Trajectories as tensors (P, N), one of them for each length.

    Raises:
        ValueError: if a number is not finite, there is none, or a shape is not (N,) or (P, N).
    """
    several = isinstance(trajectories, Sequence)
    given = [torch.as_tensor(x) for x in (trajectories if several else [trajectories])]
    for x in given:
        if x.ndim not in (1, 2) or x.shape[-1] < 3 or not len(x):
            raise ValueError(
                f"positions have shape (N,), (P, N) or are a list of (N,), N ≥ 3; got {tuple(x.shape)}"
            )
        if not bool(torch.isfinite(x).all()):
            where = (~torch.isfinite(x)).nonzero()[0].tolist()
            raise ValueError(f"the positions hold NaN or Inf, first at index {where}: remove or cut there")
    return [x.reshape(-1, x.shape[-1]).double() for x in given]


def positions_of(batch: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Positions (P, N) of a batch (N,), (P, N) or (P, N, 1), float64.

    Raises:
        ValueError: if there are several coordinates.
    """
    x = batch if isinstance(batch, Tensor) else batch[0]
    if x.ndim == 3 and x.shape[-1] != 1:
        raise ValueError(f"the equation has one coordinate, the data have {x.shape[-1]}: choose a column")
    x = x[..., 0] if x.ndim == 3 else x
    return x.reshape(-1, x.shape[-1]).double()


def correlations_of(
    x: Sequence[Tensor],
    dt: float,
    gradient: Callable[[Tensor], Tensor],
    *,
    lags: int,
    velocity: Velocity = "half_step",
    velocities: Sequence[Tensor] | None = None,
    names: Sequence[str] = ("vv", "xf"),
) -> Correlations:
    """⟨a(0) b(t)⟩ for pairs of x, v, a and f = U'(x); "xf" is ⟨x(0) U'(x(t))⟩.

    Half-step velocities (x_{i+1} - x_i)/Δt pair with each other only; with x or f they stand at i. The means
    of x and f over all data are subtracted, those of v and a are not.

    Args:
        x: positions, each (P, N).
        dt: Δt.
        gradient: U'.
        lags: number of lags, from 0.
        velocity: which estimate of the velocity.
        velocities: for "given", of the shapes of x.
        names: pairs of letters.
    """
    force = [gradient(one) for one in x]
    total = sum(one.numel() for one in x)
    mean_x, mean_f = (sum(float(o.sum()) for o in one) / total for one in (x, force))
    sums: dict[str, list[Tensor]] = {name: [] for name in names}
    counts: dict[str, list[Tensor]] = {name: [] for name in names}
    for k, (position, f) in enumerate(zip(x, force, strict=True)):
        v, inner = _velocity(position, dt, velocity, velocities[k] if velocities else None)
        series = {"x": (position - mean_x)[:, inner], "f": (f - mean_f)[:, inner], "v": v}
        if any("a" in name for name in names):
            series["a"] = torch.nn.functional.pad(position.diff(n=2) / dt**2, (1, 1))[:, inner]
        free = {"x": position - mean_x, "f": f - mean_f}  # needs no velocity, hence every point
        for name in names:
            alone = set(name) <= {"x", "f"}
            a, b = (free[c] if alone else series[c] for c in name)
            n = min(a.shape[-1], b.shape[-1])
            found, number = _blocked(a[:, :n], b[:, :n], lags)
            sums[name].append(found)
            counts[name].append(number)
    return Correlations(*({name: torch.cat(part[name]) for name in names} for part in (sums, counts)))


def _velocity(x: Tensor, dt: float, kind: Velocity, given: Tensor | None) -> tuple[Tensor, slice]:
    """v and the slice of times at which it stands (for half steps: the left end)."""
    if kind == "half_step":
        return x.diff() / dt, slice(0, -1)
    if kind == "central":
        return (x[:, 2:] - x[:, :-2]) / (2 * dt), slice(1, -1)
    if kind == "given":
        if given is None or given.shape[-1] != x.shape[-1]:
            raise ValueError("velocity='given' needs velocities= of the same shape as the positions")
        return given.reshape(x.shape).double()[:, 1:-1], slice(1, -1)
    raise ValueError(f"velocity must be one of {', '.join(map(repr, VELOCITIES))}, got {kind!r}")


def _blocked(a: Tensor, b: Tensor, lags: int) -> tuple[Tensor, Tensor]:
    """Sums and counts (blocks, lags): a few trajectories are cut, many are blocks as they are."""
    trajectories, length = a.shape
    pieces = max(1, BLOCKS // trajectories)
    block = max(math.ceil(length / pieces), min(length, lags))
    sums = correlation_sums(a, b, lags=lags, block=block)  # (P, K, lags)
    start = torch.arange(sums.shape[1], device=a.device)[:, None] * block
    last = length - torch.arange(lags, device=a.device)
    number = (torch.minimum(start + block, last) - start).clamp_min(0).double()  # (K, lags)
    return sums.flatten(0, 1), number.expand(trajectories, -1, -1).flatten(0, 1)

"""Correlations of simulations and of data by the same estimators, and how far apart they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from observatory.numerics.correlate import correlation


def matched_correlations(x: Tensor, dt: float, gradient: Callable[[Tensor], Tensor], lags: int) -> Tensor:
    """C_vv of half-step velocities, C_xx and C_xU' of ensembles, the means of x and U' subtracted.

    Args:
        x: positions, (..., P, N); each leading index is an ensemble of P trajectories.
        dt: Δt.
        gradient: U'.
        lags: number of lags, from 0, below N.

    Returns:
        Shape (..., 3, lags), float64, differentiable.
    """
    x = x.double()
    f = gradient(x)
    x, f = (a - a.mean((-2, -1), keepdim=True) for a in (x, f))
    v = x.diff() / dt
    found = (correlation(v, lags=lags), correlation(x, lags=lags), correlation(x, f, lags=lags))
    return torch.stack([c.mean(-2) for c in found], -2)


def mismatch(model: Tensor, data: Tensor) -> Tensor:
    """Σ over the three of the mean over lags of [(C - C_data)/C_data(0)]², (...) of (..., 3, lags)."""
    return ((model - data) / data[..., :1]).square().mean(-1).sum(-1)

"""Moments of two times, by which trajectories of an equation are compared with those of data."""

from __future__ import annotations

import torch
from torch import Tensor

from observatory.numerics.correlate import correlation
from observatory.physics.gle.potentials import Potential

LAGS = 9  # log-spaced, beside the first four


def chosen_lags(lags: int, device: torch.device) -> Tensor:
    """0 to 3, and a few more that are log-spaced below `lags`; rising."""
    spaced = torch.logspace(0, torch.log10(torch.tensor(lags - 1.0)).item(), LAGS).round().long()
    return torch.cat([torch.arange(min(4, lags)), spaced]).unique().to(device)


def moments(x: Tensor, potential: Potential, lags: Tensor) -> Tensor:
    """Correlations of x, x with U', U' and U, and of the increments of x, of each trajectory at these lags.

    C_UU is even where the barrier is crossed: it tells the motion within a well from that between wells.

    Args:
        x: (P, N); the means of x, U' and U over all of it are subtracted.
        potential: U.
        lags: (L,), rising.

    Returns:
        Shape (P, 5L), float64.
    """
    x = x.double()
    f, U = potential.gradient(x), potential.energy(x)
    x, f, U = (a - a.mean() for a in (x, f, U))
    pairs = ((x, x), (x, f), (f, f), (U, U), (x.diff(),) * 2)
    longest = int(lags[-1]) + 1
    return torch.cat([correlation(a, b, lags=longest)[..., lags] for a, b in pairs], -1)

"""Sums of exponentials through an extracted running friction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from observatory.physics.gle.kernels import ExponentialKernel, exponential_kernel

GRID = 60  # times among which the starting values are found
POINTS = 150  # log-spaced lags that are fitted


@dataclass(frozen=True)
class KernelFit:
    """Γ = Σ(γᵢ/τᵢ)e^{-t/τᵢ} with positive γᵢ: its spectrum is positive, some random force has it."""

    kernel: ExponentialKernel  # times rising
    log_error: Tensor  # standard errors of (ln γᵢ, ln τᵢ) from the scatter about the fit, (2, n)
    residual: float  # root mean square of G - fit over the largest |G|


def fit_exponentials(t: Tensor, G: Tensor, terms: int) -> KernelFit:
    """Least squares of G(t) = Σγᵢ(1 - e^{-t/τᵢ}), not of the noisier Γ, over log-spaced lags.

    Positivity by γ = e^a, τ = e^b; starting values by non-negative least squares over a grid of 60 times.

    Args:
        t: lags, (lags,), the first may be 0.
        G: running friction, (lags,).
        terms: n.

    Raises:
        ValueError: if there are fewer lags than unknowns, or G is nowhere positive.
    """
    from scipy.optimize import least_squares

    if terms < 1 or len(t) < 2 * terms + 2 or not bool((G > 0).any()):
        raise ValueError(f"{terms} exponentials cannot be fitted to {len(t)} lags of G ≤ {float(G.max()):g}")
    index = np.unique(np.geomspace(1, len(t) - 1, POINTS).round().astype(int))
    time, data = (a.detach().cpu().double().numpy()[index] for a in (t, G))
    scale = np.abs(data).max()

    def mismatch(p: np.ndarray) -> np.ndarray:
        gamma, tau = np.exp(p.reshape(2, -1))
        return (-np.expm1(-time[:, None] / tau) @ gamma - data) / scale

    found = least_squares(mismatch, np.log(_start(time, data, terms)).ravel(), method="trf", max_nfev=2000)
    p = found.x.reshape(2, -1)
    order = np.argsort(p[1])
    freedom = max(1, len(time) - 2 * terms)
    covariance = np.linalg.pinv(found.jac.T @ found.jac) * 2 * found.cost / freedom
    error = np.sqrt(np.diag(covariance)).reshape(2, -1)[:, order]
    gamma, tau = (torch.from_numpy(row[order]).to(G.device) for row in np.exp(p))
    return KernelFit(
        exponential_kernel(gamma, tau), torch.from_numpy(error), float(np.sqrt(np.mean(found.fun**2)))
    )


def _start(time: np.ndarray, data: np.ndarray, terms: int) -> np.ndarray:
    """Frictions and times (2, n): groups of equal friction among the non-negative strengths on a grid."""
    from scipy.optimize import nnls

    grid = np.geomspace(time[0] / 3, time[-1] * 3, GRID)
    strength = np.maximum(nnls(-np.expm1(-time[:, None] / grid), data, maxiter=100 * GRID)[0], 1e-12)
    present = strength > 1e-6 * strength.sum()
    grid, strength = grid[present], strength[present]
    share = (strength.cumsum() - strength / 2) / strength.sum()
    group = np.minimum((share * terms).astype(int), terms - 1)
    gamma, tau = np.full((2, terms), np.nan)
    for k in range(terms):
        mine = group == k
        gamma[k] = strength[mine].sum() if mine.any() else strength.sum() / terms
        tau[k] = np.exp(np.average(np.log(grid), weights=strength * mine)) if mine.any() else np.nan
    spread = np.geomspace(time[0] * 3, time[-1] / 3, terms)
    return np.stack([gamma, np.where(np.isnan(tau), spread, tau)])

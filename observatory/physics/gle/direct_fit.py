"""Sums of exponentials and damped cosines through an extracted running friction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from observatory.physics.gle.kernels import (
    ExponentialKernel,
    kernel_of_logarithms,
    rising,
)

GRID = 60  # times among which the starting values are found
POINTS = 150  # log-spaced lags that are fitted
WAVES = (16, (1.0, 2.0, 4.0, 8.0))  # decay times, and products ωσ, among which cosines are found
STARTS = 6  # cosines that are tried first
UNLIKE = 0.8  # of ln σ or ln ω, between cosines of one start


@dataclass(frozen=True)
class KernelFit:
    """Γ = Σ(γᵢ/τᵢ)e^{-t/τᵢ} + cosines with positive γᵢ, aⱼ: its spectrum is positive, some force has it."""

    kernel: ExponentialKernel  # times rising, frequencies rising
    log_error: Tensor  # standard errors of (ln γᵢ, ln τᵢ, ln aⱼ, ln σⱼ, ln ωⱼ) from the scatter, (2n + 3c,)
    residual: float  # root mean square of G - fit over the largest |G|

    @property
    def form(self) -> str:
        """What was fitted, in words."""
        terms, cosines = self.kernel.tau.shape[-1], self.kernel.frequency.shape[-1]
        parts = ((terms, "exponential"), (cosines, "damped cosine"))
        return " and ".join(f"{n} {name}{'s' if n > 1 else ''}" for n, name in parts if n)


def fit_exponentials(t: Tensor, G: Tensor, terms: int, *, cosines: int = 0) -> KernelFit:
    """Least squares of G(t) = Σγᵢ(1 - e^{-t/τᵢ}) + cosines, not of the noisier Γ, over log-spaced lags.

    Positivity by γ = e^a, τ = e^b, ...; starting values by non-negative least squares over a grid of 60 times
    and, with cosines, of 64 of these: the best of fits from six starts.

    Args:
        t: lags, (lags,), the first may be 0.
        G: running friction, (lags,).
        terms: n exponentials.
        cosines: c damped cosines: pairs of complex exponents, for kernels that become negative.

    Raises:
        ValueError: if there are fewer lags than unknowns, or G is nowhere positive.
    """
    from scipy.optimize import least_squares

    unknowns = 2 * terms + 3 * cosines
    if min(terms, cosines) < 0 or unknowns == 0 or len(t) < unknowns + 2 or not bool((G > 0).any()):
        raise ValueError(
            f"{terms} exponentials and {cosines} damped cosines cannot be fitted to {len(t)} lags of "
            f"G ≤ {float(G.max()):g}"
        )
    index = np.unique(np.geomspace(1, len(t) - 1, POINTS).round().astype(int))
    time, data = (a.detach().cpu().double().numpy()[index] for a in (t, G))
    scale = np.abs(data).max()
    lags = torch.from_numpy(time)

    def mismatch(p: np.ndarray) -> np.ndarray:
        fitted = kernel_of_logarithms(torch.from_numpy(p), terms).integral(lags)
        return (fitted.numpy() - data) / scale

    starts = _starts(time, data, terms, cosines) if cosines else [_lasting(time, data, terms)]
    fits = [least_squares(mismatch, start, method="trf", max_nfev=2000) for start in starts]
    found = min(fits, key=lambda fit: float(fit.cost))
    freedom = max(1, len(time) - unknowns)
    covariance = np.linalg.pinv(found.jac.T @ found.jac) * 2 * found.cost / freedom
    p, error = torch.from_numpy(found.x), torch.from_numpy(np.sqrt(np.diag(covariance)))
    order = rising(p, terms)
    kernel = kernel_of_logarithms(p[order].to(G.device), terms)
    return KernelFit(kernel, error[order], float(np.sqrt(np.mean(found.fun**2))))


def _lasting(time: np.ndarray, data: np.ndarray, terms: int) -> np.ndarray:
    """(ln γᵢ, ln τᵢ), (2n,), without cosines."""
    from scipy.optimize import nnls

    grid = np.geomspace(time[0] / 3, time[-1] * 3, GRID)
    strength = nnls(-np.expm1(-time[:, None] / grid), data, maxiter=100 * GRID)[0]
    return np.log(np.stack(_groups(grid, strength, time, terms))).ravel()


def _starts(time: np.ndarray, data: np.ndarray, terms: int, cosines: int) -> list[np.ndarray]:
    """Vectors (2n + 3c,): cosines that explain much and are unlike each other, exponentials for the rest."""
    from scipy.optimize import nnls

    decays, products = WAVES
    grid = np.array([(s, q / s) for s in np.geomspace(2 * time[0], time[-1], decays) for q in products])
    grid = np.log(grid[grid[:, 1] < math.pi / time[0]])  # what is slower than two lags
    unit = torch.from_numpy(np.c_[np.zeros(len(grid)), grid])
    swings = kernel_of_logarithms(unit, 0).integral(torch.from_numpy(time)).numpy()
    lasting = -np.expm1(-time[:, None] / np.geomspace(time[0] / 3, time[-1] * 3, GRID))
    both = np.c_[lasting, swings.T]
    strength = nnls(both, data, maxiter=100 * both.shape[1])[0][GRID:]
    sizes = np.maximum(strength * np.abs(swings).max(1), 1e-3 * np.abs(data).max())
    strongest = list(sizes.argsort()[::-1])
    starts = []
    for first in strongest[:STARTS]:
        chosen = [first]
        for k in strongest:
            unlike = all(np.abs(grid[k] - grid[j]).max() > UNLIKE for j in chosen)
            chosen += [k] if unlike and len(chosen) < cosines else []
        a = sizes[chosen] / np.abs(swings[chosen]).max(1)
        rest = _lasting(time, data - a @ swings[chosen], terms)
        starts.append(np.r_[rest, np.log(a), grid[chosen].T.ravel()])
    return starts


def _groups(
    grid: np.ndarray, strength: np.ndarray, time: np.ndarray, terms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frictions and times (n,): groups of equal friction among the non-negative strengths on a grid."""
    strength = np.maximum(strength, 1e-12)
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
    return gamma, np.where(np.isnan(tau), spread, tau)

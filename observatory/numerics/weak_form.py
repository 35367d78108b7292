"""Differential equations tested against functions of compact support: no derivative of the data is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class WeakForm:
    """Rows ∫ φ_c y' dt = -∫ φ_c' y dt of test functions φ_c(t) = (1 - τ²)^q, τ = (t - t_c)/(h Δt), |τ| ≤ 1.

    The trapezoidal rule is accurate to order about q + 1, as φ and its first q - 1 derivatives vanish at
    the ends (Messenger and Bortz, Multiscale Model. Simul. 19, 1474 (2021)).
    """

    values: Tensor  # φ_c(t_i) Δt, shape (rows, T): the integral of a function is this times its samples
    slopes: Tensor  # -φ_c'(t_i) Δt, shape (rows, T): the integral of y' is this times the samples of y

    @property
    def noise(self) -> Tensor:
        """Covariance of the rows ∫ φ y' dt under white noise of unit variance in y, shape (rows, rows)."""
        return self.slopes @ self.slopes.mT

    @property
    def whitener(self) -> Tensor:
        """L⁻¹ of the Cholesky factor L of `noise`: neighbouring rows overlap and are strongly correlated."""
        covariance = self.noise
        jitter = 1e-6 * covariance.diagonal().mean()
        factor = torch.linalg.cholesky(covariance + jitter * torch.eye(len(covariance)).to(covariance))
        return torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)


def weak_form(
    points: int, dt: float, *, half_width: int = 20, power: int = 6, spacing: int | None = None
) -> WeakForm:
    """The rows of a regular time grid, float64.

    Args:
        points: number T of samples.
        dt: their distance.
        half_width: h, in samples; as long as the fastest motion is.
        power: q ≥ 2.
        spacing: samples between the centres of neighbouring test functions; default h/4, from which on the
            rows hold nothing new.

    Raises:
        ValueError: if no test function fits into the series.
    """
    if points < 2 * half_width + 1 or half_width < 2 or power < 2:
        raise ValueError(
            f"test functions of half width {half_width} (at least 2) and power {power} (at least 2) do not "
            f"fit into {points} samples; the half width may be {(points - 1) // 2} at most"
        )
    centres = torch.arange(half_width, points - half_width, spacing or max(half_width // 4, 1))
    tau = ((torch.arange(points) - centres[:, None]) / half_width).double().clamp(-1, 1)
    inside = 1 - tau.square()
    return WeakForm(inside**power * dt, 2 * power * tau * inside ** (power - 1) / half_width)


def weak_regression(
    form: WeakForm, y: Tensor, library: Tensor, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Coefficients ξ of y_d' = Σ_p ξ_p φ_{d,p}(t, y) + known by whitened weak least squares over all
    components d.

    A component counts by the inverse of its variance, as for noise in proportion to the signal.

    Args:
        y: samples (..., T, D).
        library: φ at the samples, shape (..., T, D, P).
        known: the part of y' that has no unknown coefficient, shape (..., T, D).

    Returns:
        ξ and its standard errors, both of shape (..., P); the errors hold the noise of y' only, not that
        of the library, and are therefore somewhat too small.
    """
    white = form.whitener.to(y)
    scale = y.std(-2, keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)
    rows = white @ form.slopes.to(y) @ (y / scale)
    weights = white @ form.values.to(y)
    if known is not None:
        rows = rows - weights @ (known / scale)
    columns = torch.einsum("ct,...tdp->...cdp", weights, library / scale[..., None])
    b, a = rows.flatten(-2), columns.flatten(-3, -2)
    solution = torch.linalg.lstsq(a, b[..., None]).solution.squeeze(-1)
    residual = b - (a @ solution[..., None]).squeeze(-1)
    freedom = max(b.shape[-1] - solution.shape[-1], 1)
    variance = residual.square().sum(-1, keepdim=True) / freedom
    r = torch.linalg.qr(a).R
    inverse = torch.linalg.solve_triangular(r, torch.eye(r.shape[-1]).to(r), upper=True)
    return solution, (inverse.square().sum(-1) * variance).sqrt()


def default_half_width(y: Tensor) -> int:
    """A quarter of the mean period of y (..., T, D) in samples, by its crossings of the mean; at least 5."""
    signs = (y > y.mean(-2, keepdim=True)).int().diff(dim=-2).abs().sum(-2).double().median()
    points = y.shape[-2]
    width = points / max(float(signs), 1.0) / 2
    return max(min(math.ceil(width), (points - 1) // 4), 5)

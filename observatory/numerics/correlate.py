"""Autocovariances and correlation times of time series."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def autocovariance(series: Tensor, *, lags: int | None = None) -> Tensor:
    """R(l) = (1/T) Σ_t (x_t - x̄)(x_{t+l} - x̄), by a zero-padded Fourier transform.

    The divisor T at every lag (not T - l) keeps R positive definite.

    Args:
        series: (..., T), time along the last axis.
        lags: number of lags, from 0; default T.

    Returns:
        Shape (..., lags), float64. The cost is O(T ln T) for each series.

    Raises:
        ValueError: if `lags` is not between 1 and T.
    """
    length = series.shape[-1]
    lags = length if lags is None else lags
    if not 1 <= lags <= length:
        raise ValueError(
            f"a series of length {length} has between 1 and {length} lags, {lags} were asked for"
        )
    x = series.double()
    x = x - x.mean(-1, keepdim=True)
    padded = 2 ** math.ceil(math.log2(length + lags))  # lag l wraps around to 2^n - l: never below `lags`
    power = torch.fft.rfft(x, n=padded).abs().square()
    return torch.fft.irfft(power, n=padded)[..., :lags] / length


def autocorrelation(series: Tensor, *, lags: int | None = None) -> Tensor:
    """ρ(l) = R(l)/R(0); NaN for a constant series. Shapes as in `autocovariance`."""
    covariance = autocovariance(series, lags=lags)
    variance = covariance[..., :1]
    negligible = variance <= 1e-28 * series.double().square().mean(-1, keepdim=True)  # rounding of a constant
    return covariance / torch.where(negligible, torch.nan, variance)


def integrated_time(series: Tensor, *, cut: Literal["geyer", "sokal"] = "geyer") -> Tensor:
    """Integrated correlation time τ = ½ + Σ_{l≥1} ρ(l), in units of the spacing of the series.

    The mean of T values has the variance of T/(2τ) independent ones. The sum is cut where noise takes over:

    - "geyer": before the first pair with ρ(2m) + ρ(2m+1) ≤ 0 (Geyer, Statist. Sci. 7, 473 (1992));
    - "sokal": at the smallest W ≥ 5 τ(W) (Sokal, Monte Carlo methods in statistical mechanics, 1989).

    Args:
        series: (..., T), T ≥ 2.

    Returns:
        Shape (...), float64; NaN for a constant series.
    """
    rho = autocorrelation(series)
    if cut == "geyer":
        pairs = rho[..., : rho.shape[-1] // 2 * 2].unflatten(-1, (-1, 2)).sum(-1)
        positive = (pairs > 0).to(pairs).cumprod(-1)
        tau = (pairs * positive).sum(-1) - 0.5
        return torch.where(rho[..., 0].isnan(), torch.nan, tau)
    tau = rho.cumsum(-1) - 0.5  # τ(W) for W = 0, 1, ...
    window = torch.arange(rho.shape[-1], device=rho.device)
    wide = window >= 5 * tau
    wide[..., -1] = True
    return tau.gather(-1, wide.int().argmax(-1, keepdim=True)).squeeze(-1)


def decay_time(series: Tensor) -> Tensor:
    """The first lag at which ρ falls below 1/e, linearly interpolated.

    Args:
        series: (..., T).

    Returns:
        Shape (...), float64, in units of the spacing; inf without a crossing, NaN for a constant series.
    """
    rho = autocorrelation(series)
    below = rho < math.exp(-1)
    after = below.int().argmax(-1, keepdim=True).clamp_min(1)
    late, early = rho.gather(-1, after), rho.gather(-1, after - 1)
    crossing = (after - (math.exp(-1) - late) / (early - late)).squeeze(-1)
    crossing = torch.where(below.any(-1), crossing, torch.inf)
    return torch.where(rho[..., 0].isnan(), torch.nan, crossing)

"""Correlation functions and correlation times of time series."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad


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


def correlation(a: Tensor, b: Tensor | None = None, *, lags: int) -> Tensor:
    """C_ab(l) = ⟨a_t b_{t+l}⟩, the mean over the T - l products of each lag, without subtracting means.

    Args:
        a: (..., T), time along the last axis.
        b: (..., T); default a.
        lags: number of lags, from 0.

    Returns:
        Shape (..., lags), float64, differentiable. Overlapping blocks that fit into the cache make the cost
        O(T ln lags).

    Raises:
        ValueError: if `lags` is not between 1 and T, or the lengths differ.
    """
    length = a.shape[-1]
    size = 2 ** math.ceil(math.log2(max(4 * lags, 2**14)))
    sums = correlation_sums(a, b, lags=lags, block=min(size - lags + 1, length), total=True)
    return sums / torch.arange(length, length - lags, -1, device=a.device)


def correlation_sums(
    a: Tensor, b: Tensor | None = None, *, lags: int, block: int, total: bool = False
) -> Tensor:
    """Σ_t a_t b_{t+l} over each block kM ≤ t < (k+1)M of origins; t + l may lie in the next blocks.

    The sum over the K = ⌈T/M⌉ blocks is that of the whole series: blocks can be resampled.

    Args:
        a: (..., T), time along the last axis.
        b: (..., T); default a.
        lags: number of lags, from 0.
        block: M, origins in a block.
        total: sum over the blocks, at one inverse transform.

    Returns:
        Shape (..., K, lags), with `total` (..., lags); float64, differentiable.

    Raises:
        ValueError: if `lags` or `block` is not between 1 and T, or the lengths differ.
    """
    b = a if b is None else b
    length = a.shape[-1]
    if b.shape[-1] != length:
        raise ValueError(f"series of {length} and of {b.shape[-1]} points cannot be correlated")
    if not (1 <= lags <= length and 1 <= block <= length):
        raise ValueError(
            f"a series of length {length} has between 1 and {length} lags and origins in a block, "
            f"{lags} and {block} were asked for"
        )
    blocks = math.ceil(length / block)
    padded = 2 ** math.ceil(math.log2(block + lags - 1)) if block + lags > 2 else 1
    early = pad(a.double(), (0, blocks * block - length)).unflatten(-1, (blocks, block))
    late = pad(b.double(), (0, blocks * block + lags - 1 - length)).unfold(-1, block + lags - 1, block)
    if total:
        shape = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
        group = max(1, 2**22 // (padded * max(1, math.prod(shape))))  # blocks whose spectra are held at once
        pieces = zip(early.split(group, -2), late.split(group, -2), strict=True)
        power = sum(
            (_cross_spectrum(x, y, padded).sum(-2) for x, y in pieces), torch.zeros((), device=a.device)
        )
        return torch.fft.irfft(power, n=padded)[..., :lags]
    return torch.fft.irfft(_cross_spectrum(early, late, padded), n=padded)[..., :lags]


def _cross_spectrum(a: Tensor, b: Tensor, n: int) -> Tensor:
    return torch.fft.rfft(a, n=n).conj() * torch.fft.rfft(b, n=n)


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

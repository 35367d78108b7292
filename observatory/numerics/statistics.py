"""Resampling and straight lines."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LineFit:
    """Ordinary least squares y = intercept + slope x, one fit for each leading index."""

    slope: Tensor  # (...), unit of y over unit of x
    intercept: Tensor  # (...), unit of y
    slope_error: Tensor  # (...), standard error; NaN for two points
    intercept_error: Tensor  # (...), standard error; NaN for two points
    correlation: Tensor  # (...), Pearson's r


def fit_line(x: Tensor, y: Tensor) -> LineFit:
    """Least-squares line through points, with standard errors from the scatter about it.

    slope = S_xy/S_xx,   se(slope)² = (S_yy - S_xy²/S_xx)/((n - 2) S_xx)

    Args:
        x, y: (..., n), broadcast against each other; computed in float64.

    Raises:
        ValueError: if there are fewer than two points.
    """
    x, y = torch.broadcast_tensors(x.double(), y.double())
    n = x.shape[-1]
    if n < 2:
        raise ValueError(f"a line needs at least two points, got {n}")
    mean_x, mean_y = x.mean(-1), y.mean(-1)
    dx, dy = x - mean_x[..., None], y - mean_y[..., None]
    s_xx, s_xy, s_yy = (dx * dx).sum(-1), (dx * dy).sum(-1), (dy * dy).sum(-1)
    slope = s_xy / s_xx
    rest = (
        (dy - slope[..., None] * dx).square().sum(-1) / (n - 2)
        if n > 2
        else torch.full_like(slope, torch.nan)
    )
    return LineFit(
        slope=slope,
        intercept=mean_y - slope * mean_x,
        slope_error=(rest / s_xx).sqrt(),
        intercept_error=(rest * (1 / n + mean_x.square() / s_xx)).sqrt(),
        correlation=s_xy / (s_xx * s_yy).sqrt(),
    )


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's r along the last axis, shape (...), float64; NaN where one of the two is constant."""
    x, y = (v.double() - v.double().mean(-1, keepdim=True) for v in (x, y))
    return (x * y).sum(-1) / ((x * x).sum(-1) * (y * y).sum(-1)).sqrt()


def ranks(values: Tensor) -> Tensor:
    """Places 1 ... n along the last axis, float64; equal values share the mean of theirs.

    Pearson's r of ranks is Spearman's ρ. Costs n² comparisons, so that resamples go through as a batch.
    """
    less = (values[..., None, :] < values[..., :, None]).sum(-1)
    same = (values[..., None, :] == values[..., :, None]).sum(-1)
    return less + (same.double() + 1) / 2


@dataclass(frozen=True)
class Interval:
    """A statistic with the spread that resampling gives it."""

    estimate: Tensor  # (...), the statistic of the sample itself
    low: Tensor  # (...), lower end
    high: Tensor  # (...), upper end
    error: Tensor  # (...), standard deviation over the resamples
    level: float  # share of the resamples between the ends


def bootstrap_indices(
    size: int, resamples: int, *, block: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Indices of resamples made of blocks of consecutive indices, which wrap around at the end.

    Blocks longer than the correlation time keep the correlations of a time series (circular block bootstrap:
    Politis, Romano, in: Exploring the Limits of Bootstrap, Wiley 1992); block = 1 is the ordinary bootstrap.

    Returns:
        Shape (resamples, size), int64, on the generator's device.

    Raises:
        ValueError: if the block is not between 1 and `size`.
    """
    if not 1 <= block <= size:
        raise ValueError(f"the block length must be between 1 and the number of samples {size}, got {block}")
    device = generator.device if generator is not None else None
    starts = torch.randint(size, (resamples, math.ceil(size / block)), generator=generator, device=device)
    indices = starts[..., None] + torch.arange(block, device=device)
    return indices.flatten(1)[:, :size] % size


def bootstrap(
    samples: Tensor,
    statistic: Callable[[Tensor], Tensor],
    *,
    resamples: int = 1000,
    block: int = 1,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Interval:
    """Percentile interval of a statistic.

    Args:
        samples: (n, ...), exchangeable along the first axis, or a time series if `block` exceeds its
            correlation time.
        statistic: from samples (b, n, ...) to values (b, ...): every sample of a batch at once.
        resamples: number of resamples.
        block: length of the blocks of consecutive samples that are drawn together.
        level: share of the resamples inside the interval.
        generator: of the draws.
    """
    indices = bootstrap_indices(samples.shape[0], resamples, block=block, generator=generator).to(
        samples.device
    )
    at_once = max(1, 2**24 // max(samples.numel(), 1))  # 2^24 numbers: 128 MB of float64
    replicates = torch.cat([statistic(samples[part]) for part in indices.split(at_once)]).double()
    tails = replicates.new_tensor([(1 - level) / 2, (1 + level) / 2])
    low, high = torch.nanquantile(replicates, tails, dim=0)
    estimate = statistic(samples[None])[0].double()
    return Interval(estimate, low, high, _spread(replicates), level)


def _spread(replicates: Tensor) -> Tensor:
    """Standard deviation along the first axis, leaving out resamples on which the statistic is undefined."""
    known = replicates.isfinite()
    values = torch.where(known, replicates, 0.0)
    n = known.sum(0)
    mean = values.sum(0) / n
    return (torch.where(known, values - mean, 0.0).square().sum(0) / (n - 1)).sqrt()

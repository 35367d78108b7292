"""The inverse variance-flatness relation: σ² ∝ F^(-ψ)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.numerics.statistics import bootstrap, fit_line


@dataclass(frozen=True)
class InverseRelation:
    """ψ from ln σ² = const - ψ ln F over some components. (Feng, Tu 2021.) Equilibrium would give ψ = -2."""

    exponent: float  # ψ; NaN with fewer than three components
    error: float  # standard error of the fit: how well the components lie on a line
    correlation: float  # r of ln σ² and ln F
    low: float  # 95 % interval of ψ over resampled blocks of time; NaN without projections
    high: float
    ranks: tuple[int, ...]  # components in the fit, counted from 1
    excluded: tuple[int, ...]  # components asked for but left out: a drift, no crossing, no variance
    block: int  # snapshots in a block of the resampling


def fit_relation(
    variance: Tensor,
    flatness: Tensor,
    *,
    first: int = 1,
    last: int | None = None,
    projections: Tensor | None = None,
    correlation_time: Tensor | None = None,
    resamples: int = 500,
    generator: torch.Generator | None = None,
) -> InverseRelation:
    """Ordinary least squares of ln σ² on ln F, with an interval from blocks of the trajectory.

    The interval is the scatter of ψ over resampled time at fixed directions; the standard error is the
    scatter of the components about the line. Both depend on the range of components: report it with the
    exponent.

    Args:
        variance: σ_i², (k,).
        flatness: F_i, (k,); components with F = inf or 0 are left out.
        first, last: components to fit, counted from 1, both included; default all.
        projections: θ_i(t), (T, k), for the interval.
        correlation_time: τ_i in snapshots, (k,): blocks are twice the longest among the fitted components, at
            least 2 and at most a quarter of the window.
    """
    count = variance.shape[0]
    wanted = list(range(first, min(last or count, count) + 1))
    good = (flatness.isfinite() & (flatness > 0) & (variance > 0)).tolist()
    ranks = [rank for rank in wanted if good[rank - 1]]
    excluded = tuple(sorted({*range(1, first), *wanted} - set(ranks)))
    if len(ranks) < 3:
        none = math.nan
        return InverseRelation(none, none, none, none, none, tuple(ranks), excluded, 0)
    index = torch.tensor([rank - 1 for rank in ranks], device=variance.device)
    log_flatness = flatness[index].double().log()
    line = fit_line(log_flatness, variance[index].double().log())
    low = high = math.nan
    block = 0
    if projections is not None:
        chosen = projections[:, index]
        block = _block(len(chosen), None if correlation_time is None else correlation_time[index])

        def exponent(samples: Tensor) -> Tensor:  # (b, T, k)
            return -fit_line(log_flatness, samples.var(1).log()).slope

        spread = bootstrap(chosen, exponent, resamples=resamples, block=block, generator=generator)
        low, high = float(spread.low), float(spread.high)
    return InverseRelation(
        -float(line.slope),
        float(line.slope_error),
        float(line.correlation),
        low,
        high,
        tuple(ranks),
        excluded,
        block,
    )


def _block(snapshots: int, correlation_time: Tensor | None) -> int:
    longest = 0.0 if correlation_time is None else float(correlation_time.nan_to_num(0.0).max())
    return max(1, min(max(2, math.ceil(2 * longest)), snapshots // 4))

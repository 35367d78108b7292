"""What the trajectory alone says: variances, correlation times, drifts."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from observatory.numerics.correlate import decay_time, integrated_time
from observatory.weights.components import Components
from observatory.weights.drift import COSINE_ALARM, SamplingBand, cosine_match, sampling_band
from observatory.weights.stationarity import geweke_z, half_window_ratio

SNAPSHOTS_PER_TIME = 20  # a window shorter than this many correlation times does not resolve them


@dataclass(frozen=True, eq=False)
class Motion:
    """Fluctuations along k directions. Without stored snapshots, times and tests of stationarity are NaN."""

    variance: Tensor  # σ_i², (k,), divisor T - 1, weight units squared
    projections: Tensor  # θ_i(t) about its mean, (T, k), weight units; (0, k) without stored snapshots
    integrated_time: Tensor  # τ_int, (k,), steps
    decay_time: Tensor  # first 1/e crossing, (k,), steps; inf without one
    cosine: Tensor  # |correlation| of component i with i half cosines, (k,)
    half_ratio: Tensor  # variance in the second half of the window over that in the first, (k,)
    geweke: Tensor  # z of the means of the early and the late window, (k,)
    spectrum: Tensor  # all eigenvalues of Σ that are known, (r,), weight units squared
    total: Tensor  # Tr Σ, scalar
    squares: Tensor  # Tr Σ², scalar; of the known eigenvalues without stored snapshots
    size: int  # number of weights P
    window: int  # steps covered

    @property
    def resolved(self) -> Tensor:
        """Whether the window is at least 20 τ_int long, (k,)."""
        return self.integrated_time <= self.window / SNAPSHOTS_PER_TIME

    @property
    def drift(self) -> bool:
        """Whether the leading component is half a cosine over the window: then it is a drift."""
        return bool(self.cosine[0] > COSINE_ALARM)

    @property
    def participation_ratio(self) -> Tensor:
        """(Tr Σ)²/Tr Σ²."""
        return self.total.square() / self.squares

    @property
    def effective_samples(self) -> Tensor:
        """T_eff = T/(2τ), with the mean of τ_int weighted by the variances: scalar."""
        weights = self.variance / self.variance.sum()
        return self.window / (2 * (weights * self.integrated_time).sum())

    def to(self, device: torch.device) -> Motion:
        """The same on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def band(self) -> SamplingBand:
        """Where the eigenvalues of an isotropic Σ of the same trace would lie; a drift is left out of
        both.
        """
        skip = 1 if self.drift else 0
        weights = self.variance[skip:] / self.variance[skip:].sum()
        samples = self.window / (2 * (weights * self.integrated_time[skip:]).sum())
        rest = self.total - self.spectrum[:skip].sum()
        return sampling_band(rest / self.size, size=self.size, effective_samples=samples)


def motion_along(projections: Tensor, components: Components, *, every: int, size: int) -> Motion:
    """Motion from projections of the snapshots on k directions.

    Args:
        projections: θ_i(t) - mean, (T, k): those of the components, or on any other directions.
        components: of the same snapshots, for what is said about Σ.
        every: steps between snapshots.
        size: P.
    """
    series = projections.mT
    tau = integrated_time(series)
    return Motion(
        variance=projections.square().sum(0) / (projections.shape[0] - 1),
        projections=projections,
        integrated_time=tau * every,
        decay_time=decay_time(series) * every,
        cosine=cosine_match(projections),
        half_ratio=half_window_ratio(projections),
        geweke=geweke_z(series, tau),
        spectrum=components.variance,
        total=components.total,
        squares=components.squares,
        size=size,
        window=projections.shape[0] * every,
    )


def motion_without_snapshots(variance: Tensor, *, total: Tensor, size: int, window: int) -> Motion:
    """Motion known by its variances (k,) only, as from frequent directions."""
    unknown = torch.full_like(variance, torch.nan)
    return Motion(
        variance=variance,
        projections=variance.new_zeros(0, len(variance)),
        integrated_time=unknown,
        decay_time=unknown,
        cosine=unknown,
        half_ratio=unknown,
        geweke=unknown,
        spectrum=variance,
        total=total,
        squares=variance.square().sum(),
        size=size,
        window=window,
    )

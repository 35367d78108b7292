"""A weight during training as a Langevin particle: mass, friction and memory of its fluctuations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from observatory.physics.gle.extraction import extract_kernel
from observatory.physics.gle.inversion import kernel_of_correlations
from observatory.physics.gle.linear import half_step_velocity_correlation
from observatory.physics.gle.potentials import Harmonic
from observatory.physics.gle.result import MemoryKernel
from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.studies.study import Conclusion, FinishedRun, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOMENTUM = "model.init_args.optimizer.init_args.momentum"
COLOURS = ("#4c72b0", "#55a868", "#c44e52")


@dataclass(frozen=True)
class _Direction:
    """The fluctuation along one direction as a particle with kT = 1 in a well of stiffness 1/⟨x²⟩."""

    rank: int
    relaxation: float  # 1/(ηκ), steps: how slowly gradient descent alone would return
    kernel: MemoryKernel
    variance: float  # ⟨x²⟩
    heavy_ball: Tensor  # G of descent with momentum under white noise, times ⟨x²⟩, (lags,)

    @property
    def scaled(self) -> Tensor:
        """G⟨x²⟩/kT in steps: friction over stiffness, the relaxation time without inertia."""
        return self.kernel.G * self.variance

    @property
    def mass(self) -> float:
        """m̂⟨x²⟩/kT, steps²."""
        return float(self.kernel.apparent_mass) * self.variance

    def change(self, epoch: int) -> tuple[float, float]:
        """Growth of G from the first quarter of an epoch to beyond it, over the former; its error."""
        early, late = slice(2, max(3, epoch // 4)), slice(epoch + 1, None)
        before, after = self.kernel.G[early].mean(), self.kernel.G[late].mean()
        band = self.kernel.G_band
        error = band.error[late].mean() if band is not None else torch.tensor(math.nan)
        return float(after / before - 1), float(error / before.abs())


@dataclass(frozen=True)
class _Training:
    """One run."""

    label: str
    replacement: bool
    momentum: float
    epoch: int  # steps
    directions: Sequence[_Direction]


class TrainingAsGle(Study):
    """Projections of the weights, as `WeightFluctuations` records them, put through the Langevin equation.

    In a valley of curvature κ, x ← x - η(κx + noise) with momentum β is the particle of m/k = (1 + β)/(2ηκ)
    and γ/k = (1 - β)/(ηκ) without memory, if the noise of the batches is white. Batches that are reshuffled
    each epoch have noise that cancels over an epoch: the weights then remember for one epoch. (Kühn, Rosenow
    2023, arXiv:2306.05300, for the noise; Tepper, Dalton, Netz 2024, arXiv:2401.09249, for the kernel.)

    Args:
        directions: ranks of the recorded directions, from 0.
        lags: of the kernel, in snapshots.
        resamples: for the bands.
        instrument: name of the one that recorded.
    """

    title = "A weight in training as a Langevin particle"

    def __init__(
        self,
        directions: Sequence[int] = (0, 6, 12),
        lags: int = 60,
        resamples: int = 100,
        instrument: str = "weights",
    ) -> None:
        if len(directions) > len(COLOURS):
            raise ValueError(f"at most {len(COLOURS)} directions are drawn, got {tuple(directions)}")
        self.directions, self.lags, self.resamples = tuple(directions), lags, resamples
        self.instrument = instrument

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        found = [self._read(run) for run in runs]
        header = ["run", "ηκ", "γ/k (steps)", "heavy ball", "m̂/k (steps²)", "heavy ball", "G beyond an epoch"]
        verdict = Section(
            "Verdict",
            findings=[_sentence(one) for one in found],
            panels=[
                Panel(
                    "Friction that lasts for an epoch",
                    _figure(found, self.lags),
                    "Running friction of weight fluctuations over stiffness, in steps of the optimizer. "
                    "Points: extracted from the recorded projections, with 95 % bands. Lines: gradient "
                    "descent with momentum in the measured curvature under white noise, put through the "
                    "same estimators. Dotted: one epoch. Where batches are drawn with replacement there "
                    "is no memory; where they are reshuffled, most of the friction of the first steps is "
                    "gone when the epoch is over: the noise has cancelled.",
                )
            ],
            header=header,
            rows=[row for one in found for row in _rows(one)],
        )
        return Conclusion([verdict])

    def _read(self, run: FinishedRun) -> _Training:
        record = run.record.instrument(self.instrument)
        settings = run.record.meta(self.instrument)["settings"]
        x = torch.tensor(np.asarray(record["projections"].values[-1]), dtype=torch.float64)  # (T, ranks)
        rate, curvature = (record[name].values[-1] for name in ("learning_rate", "curvature"))
        every = float(record["every"].values[-1])
        momentum = float(run.point.get(MOMENTUM, 0.0))
        directions = [
            self._direction(x[:, rank], rank, every, float(rate) * float(curvature[rank]), momentum)
            for rank in self.directions
        ]
        epoch = max(1, int(settings["samples"] // settings["batch_size"] / every))
        replaced = settings["sampling"] == "with replacement"
        label = f"{'with replacement' if replaced else 'reshuffled'}, momentum {momentum:g}"
        return _Training(label, replaced, momentum, epoch, directions)

    def _direction(self, x: Tensor, rank: int, every: float, rate: float, momentum: float) -> _Direction:
        variance = float(x.var())
        kernel = extract_kernel(
            x,
            every,
            1.0,
            n_lags=self.lags,
            potential=Harmonic(1 / variance),
            resamples=self.resamples,
            generator=torch.Generator().manual_seed(0),
        )
        return _Direction(rank, 1 / rate, kernel, variance, heavy_ball(rate, momentum, every, self.lags))


def heavy_ball(rate: float, momentum: float, every: float, lags: int) -> Tensor:
    """G⟨x²⟩/kT of x ← x + β(x - x') - ηκx + white noise, at each lag, in steps; no sampling.

    The correlation obeys ρ(n+1) = (1 + β - ηκ)ρ(n) - βρ(n-1); the estimators are those of the data.

    Args:
        rate: ηκ.
        momentum: β.
        every: steps between snapshots.
        lags: number of lags, from 0.
    """
    step = int(every)
    rho = [1.0, (1 + momentum - rate) / (1 + momentum)]
    while len(rho) < (lags + 1) * step + 1:
        rho.append((1 + momentum - rate) * rho[-1] - momentum * rho[-2])
    xx = torch.tensor(rho[::step][: lags + 1], dtype=torch.float64)
    return kernel_of_correlations(half_step_velocity_correlation(xx, every), xx[:-1], every, smooth=True)[0]


def _sentence(one: _Training) -> Finding:
    changes = [direction.change(one.epoch) for direction in one.directions]
    told = ", ".join(
        f"{100 * change:+.0f} ± {200 * error:.0f} %" for change, error in changes
    )  # two standard errors
    masses = [d.mass * 2 / d.relaxation / (1 + one.momentum) for d in one.directions]
    remembers = any(abs(change) > 3 * error for change, error in changes)
    verdict = f"a memory of an epoch ({one.epoch} steps)" if remembers else "no memory"
    mass = ", ".join(f"{m:.3f}" for m in masses)
    return Finding(
        f"{one.label[0].upper()}{one.label[1:]}: {verdict}. Beyond an epoch the friction differs by {told} "
        f"(two standard errors) from that of the first few steps; the mass is {mass} of (1 + β)/(2ηκ)."
    )


def _rows(one: _Training) -> list[list[str]]:
    rows = []
    for d in one.directions:
        change, error = d.change(one.epoch)
        expected = (1 - one.momentum) * d.relaxation
        rows.append(
            [
                one.label,
                f"{1 / d.relaxation:.3g}",
                f"{float(d.scaled[1:].mean()):.4g}",
                f"{expected:.4g}",
                f"{d.mass:.4g}",
                f"{(1 + one.momentum) * d.relaxation / 2:.4g}",
                f"{change:+.2f} ± {error:.2f}",
            ]
        )
    return rows


def _figure(found: Sequence[_Training], lags: int) -> Figure:
    from matplotlib.figure import Figure

    columns = min(2, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(4.8 * columns, 3.4 * rows), layout="constrained")
    for axis, one in zip(figure.subplots(rows, columns, squeeze=False).flat, found, strict=False):
        for direction, colour in zip(one.directions, COLOURS, strict=False):
            t, band = direction.kernel.t[1:], direction.kernel.G_band
            if band is not None:
                low, high = (edge[1:] * direction.variance for edge in (band.low, band.high))
                axis.fill_between(t, low, high, color=colour, alpha=0.2, lw=0)
            label = f"ηκ = {1 / direction.relaxation:.2g}"
            axis.plot(t, direction.scaled[1:], ".", ms=4, color=colour, label=label)
            axis.plot(t, direction.heavy_ball[1:], color=colour, lw=1)
        axis.axvline(one.epoch * float(one.directions[0].kernel.dt), color="0.6", ls=":", lw=1)
        axis.set(title=one.label, xlabel="lag (steps)", ylabel="G⟨x²⟩/kT (steps)", xlim=(0, lags))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    return figure

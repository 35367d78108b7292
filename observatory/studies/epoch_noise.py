"""What the data loader alone does to the weights: reshuffling each epoch against drawing with replacement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from observatory.numerics.statistics import Interval, bootstrap, fit_line
from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.solvable.epoch_noise import crossover_curvature, epoch_noise_variance, white_noise_variance
from observatory.studies.study import Conclusion, FinishedRun, Study

KEY = "data.init_args.replacement"
FLAT = 1 / 3  # of the crossover: flatter directions are fitted
COLOURS = {"without replacement": "tab:blue", "with replacement": "tab:orange"}


@dataclass(frozen=True)
class _Kind:
    """All directions of all runs that drew their batches in the same way; each tensor is (n,)."""

    sampling: str
    curvature: Tensor  # κ
    variance: Tensor  # σ², measured
    error: Tensor  # of the variance, relative: what the correlation times leave in so long a window
    expected: Tensor  # σ², closed form with the noise that was measured
    crossover: float  # h×
    dissipation: list[float]  # r_FDR of each run

    @property
    def flat(self) -> Tensor:
        return self.curvature < FLAT * self.crossover

    def exponent(self) -> Interval:
        """ψ of σ² ∝ F^(-ψ), which is twice the slope of ln σ² on ln κ in a quadratic well, F ∝ κ^(-1/2)."""
        points = torch.stack([self.curvature[self.flat].log(), self.variance[self.flat].log()], -1)
        return bootstrap(
            points,
            lambda p: 2 * fit_line(p[..., 0], p[..., 1]).slope,
            generator=torch.Generator().manual_seed(0),
        )


class EpochNoise(Study):
    """Variance of the weights of a linear model against curvature, for two ways of drawing batches.

    Noise whose sum over an epoch vanishes leaves flat directions cold: σ² ∝ κ below the crossover
    h× = 3/(η(M + 1)), an inverse variance-flatness relation with ψ = 2 of the loader's own making; batches
    drawn with replacement have σ² independent of κ, ψ = 0. (Kühn, Rosenow 2023, arXiv:2306.05300.)
    The part (w·x)x of a gradient that follows the moving weights does not cancel over an epoch: it adds
    Σ κσ²/s² of the variance under white noise.
    """

    title = "Epoch noise: what the data loader alone does to the weights"

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        ways = {point.get(KEY) for point in points}
        if ways != {False, True}:
            raise ValueError(
                f"the study compares both ways of drawing: sweep {KEY}: [false, true], got {ways}"
            )

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        kinds = _kinds(runs)
        exponents = {kind.sampling: kind.exponent() for kind in kinds}
        rows = [_row(kind, exponents[kind.sampling]) for kind in kinds]
        verdict = Section(
            "Verdict",
            findings=[_relation(kind, exponents[kind.sampling]) for kind in kinds] + [_agreement(kinds)],
            panels=[_panel(kinds)],
            header=[
                "batches drawn",
                "directions",
                "ψ below h×/3",
                "95 % interval",
                "σ²/closed form",
                "r_FDR",
            ],
            rows=rows,
        )
        return Conclusion([verdict])


def _kinds(runs: Sequence[FinishedRun]) -> list[_Kind]:
    found: dict[str, list[_Kind]] = {}
    for run in runs:
        one = _read(run)
        found.setdefault(one.sampling, []).append(one)
    return [
        _Kind(
            sampling,
            curvature=torch.cat([k.curvature for k in kinds]),
            variance=torch.cat([k.variance for k in kinds]),
            error=torch.cat([k.error for k in kinds]),
            expected=torch.cat([k.expected for k in kinds]),
            crossover=kinds[0].crossover,
            dissipation=[r for k in kinds for r in k.dissipation],
        )
        for sampling, kinds in found.items()
    ]


def _read(run: FinishedRun) -> _Kind:
    settings = run.record.meta("weights")["settings"]
    record = run.record.instrument("weights")
    curvature, variance, noise, times = (
        torch.tensor(record[name].values[-1], dtype=torch.float64)
        for name in ("curvature", "variance", "noise", "integrated_time")
    )
    rate, first, last = (
        float(record[name].values[-1]) for name in ("learning_rate", "first_step", "last_step")
    )
    size, samples, sampling = (settings[name] for name in ("batch_size", "samples", "sampling"))
    white = white_noise_variance(curvature, learning_rate=rate, noise=noise / size)
    expected, batches = white, samples // size
    if sampling == "without replacement":
        repeats = (samples - size) / (samples - 1)
        cancelling = epoch_noise_variance(
            curvature, learning_rate=rate, batches=batches, noise=noise / size * repeats
        )
        following = (curvature * variance).sum() / (noise / curvature).median()  # E/s²
        expected = cancelling + following * white
    return _Kind(
        sampling,
        curvature,
        variance,
        # of squares, whose correlation time is half; 2/T for independent ones
        (2 * times.clamp_min(1) / (last - first + 1)).sqrt(),
        expected,
        crossover_curvature(learning_rate=rate, batches=batches),
        [float(record["dissipation_ratio"].values[-1])],
    )


def _relation(kind: _Kind, exponent: Interval) -> Finding:
    psi, low, high = (float(x) for x in (exponent.estimate, exponent.low, exponent.high))
    found = (
        "an inverse variance-flatness relation" if low > 0.5 else "no relation between variance and flatness"
    )
    how = "Reshuffled epochs" if kind.sampling == "without replacement" else "Draws with replacement"
    return Finding(
        f"{how}: ψ = {psi:.2f} (95 % {low:.2f} to {high:.2f}) over {int(kind.flat.sum())} flat directions, "
        f"{found}."
    )


def _agreement(kinds: Sequence[_Kind]) -> Finding:
    ratio = torch.cat([kind.variance / kind.expected for kind in kinds])
    away = (ratio - 1).abs() / torch.cat([kind.error for kind in kinds])
    worst = int(away.argmax())
    text = (
        f"Over all {len(ratio)} directions the variance is {float(ratio.median()):.3f} of its closed form "
        f"(median). The one farthest from it, by {float(ratio[worst] - 1):+.0%}, is {float(away[worst]):.1f} "
        "standard errors off: flat directions have long correlation times, and few independent samples."
    )
    agreed = abs(float(ratio.median()) - 1) < 0.05 and float(away[worst]) < 4
    return Finding(text, "result" if agreed else "warning")


def _row(kind: _Kind, exponent: Interval) -> list[str]:
    ratio = kind.variance / kind.expected
    return [
        kind.sampling,
        str(len(ratio)),
        f"{float(exponent.estimate):.2f}",
        f"{float(exponent.low):.2f} to {float(exponent.high):.2f}",
        f"{float(ratio.median()):.3f} ± {float(ratio.std()):.3f}",
        ", ".join(f"{r:.3f}" for r in kind.dissipation),
    ]


def _panel(kinds: Sequence[_Kind]) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for kind in kinds:
        colour, order = COLOURS[kind.sampling], kind.curvature.argsort()
        spread = kind.error * kind.variance
        axis.errorbar(
            kind.curvature, kind.variance, yerr=spread, fmt="o", ms=4, lw=1, color=colour, label=kind.sampling
        )
        axis.plot(kind.curvature[order], kind.expected[order], "-", lw=1, color=colour)
    axis.axvline(kinds[0].crossover, color="0.6", ls=":", lw=1)
    axis.annotate(
        "h×", (kinds[0].crossover, 0.02), xycoords=("data", "axes fraction"), ha="left", color="0.4"
    )
    axis.set(xscale="log", yscale="log", xlabel="curvature κ", ylabel="variance σ² of the weights")
    axis.legend(frameon=False)
    return Panel(
        "Variance against curvature",
        figure,
        "Each point is an eigenvector of the Hessian of a linear model, trained by the same loop on the same "
        "examples; only the drawing of the batches differs. Bars: standard errors from the correlation "
        "times. Lines: closed forms with the measured noise. Left of the dotted crossover the sum over an "
        "epoch of reshuffled batches cancels.",
    )

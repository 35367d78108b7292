"""The Fisher information while networks learn: its maximum, its parts, and a magnet's for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from observatory.numerics.statistics import Interval, bootstrap
from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.solvable.curie_weiss import fisher_information, fisher_peak
from observatory.studies.study import Conclusion, FinishedRun, Study

SHARE = "data.init_args.shuffle_labels"
SPINS = (100, 1000, 10000)
COLOURS = ("tab:blue", "tab:red", "tab:green", "tab:orange")
HALF = 0.5


@dataclass(frozen=True)
class _Kind:
    """All seeds of one share of permuted labels; S seeds, R records, L layers."""

    share: float  # of the training labels that are permuted
    steps: NDArray  # (R,)
    trace: NDArray  # (S, R)
    loss: NDArray  # on the probe, (S, R)
    layers: NDArray  # (S, R, L)
    names: list[str]  # of the layers

    @property
    def label(self) -> str:
        return "true labels" if self.share == 0 else f"{self.share:.0%} of the labels permuted"

    @cached_property
    def peak(self) -> NDArray:
        """Record of the largest trace of each seed, (S,)."""
        return self.trace.argmax(1)

    @cached_property
    def fallen(self) -> NDArray:
        """Record at which the loss has first fallen half of its way, (S,)."""
        least = self.loss.min(1, keepdims=True)
        return (self.loss <= least + HALF * (self.loss[:, :1] - least)).argmax(1)

    @property
    def interior(self) -> NDArray:
        """Seeds whose largest trace is neither at the first nor at the last look, (S,)."""
        return (self.peak > 0) & (self.peak < self.trace.shape[1] - 1)

    def lead(self) -> Interval:
        """ln(1 + step of the loss's half fall) - ln(1 + step of the peak), mean over seeds."""
        at = np.log1p(self.steps)
        lead = torch.from_numpy(at[self.fallen] - at[self.peak])
        return _interval(lead)

    def at_peak(self, values: NDArray) -> NDArray:
        return np.take_along_axis(values, self.peak[:, None], 1)[:, 0]


class FisherInformation(Study):
    """Where the trace of the Fisher information is largest, beside the fall of the loss.

    Achille, Rovere, Soatto (2017, arXiv:1711.08856) find a rise and a fall; a maximum ahead of the fall of
    the loss closes the stage of fast change. At a second-order transition the information about the control
    parameter diverges: shown for the Curie-Weiss magnet, whose peaks for finite size are exactly known.

    Args:
        instrument: name of the one that recorded the traces.
    """

    title = "Fisher information: its maximum during training, and at a phase transition"

    def __init__(self, instrument: str = "fisher") -> None:
        self.instrument = instrument

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        shares = [float(point.get(SHARE, 0.0)) for point in points]
        counts = {shares.count(share) for share in shares}
        if len(counts) > 1 or min(counts) < 2:
            raise ValueError(
                f"the study needs equally many seeds, at least two, for each value of {SHARE}, got {shares}"
            )

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        kinds = self._kinds(runs)
        findings = [sentence for kind in kinds for sentence in _sentences(kind)]
        if len(kinds) > 1:
            findings.append(_contrast(kinds[0], kinds[-1]))
        verdict = Section(
            "Verdict",
            findings=findings,
            panels=[_course_panel(kinds)],
            header=["labels", "seeds", "Tr F at start", "largest", "at step", "at end", "loss half fallen"],
            rows=[_row(kind) for kind in kinds],
        )
        return Conclusion([verdict, _layers(kinds), _magnet()])

    def _kinds(self, runs: Sequence[FinishedRun]) -> list[_Kind]:
        groups: dict[float, list[FinishedRun]] = {}
        for run in runs:
            groups.setdefault(float(run.point.get(SHARE, 0.0)), []).append(run)
        return [self._kind(share, groups[share]) for share in sorted(groups)]

    def _kind(self, share: float, runs: Sequence[FinishedRun]) -> _Kind:
        records = [run.record.instrument(self.instrument) for run in runs]

        def stacked(name: str) -> NDArray:
            return np.stack([np.asarray(record[name].values, dtype=float) for record in records])

        first = records[0]
        names = list(first["layers"].coordinates["layer"])
        return _Kind(share, first["trace"].steps, stacked("trace"), stacked("loss"), stacked("layers"), names)


def _interval(values: torch.Tensor) -> Interval:
    generator = torch.Generator().manual_seed(0)
    return bootstrap(values.double(), lambda v: v.mean(1), resamples=2000, generator=generator)


def _sentences(kind: _Kind) -> list[Finding]:
    seeds, inside = len(kind.trace), int(kind.interior.sum())
    label, count = kind.label.capitalize(), f"({inside} of {seeds} seeds)"
    if 2 * inside <= seeds:
        return [Finding(f"{label}: the trace has no maximum between the first and the last look {count}.")]
    height = _interval(torch.from_numpy(kind.at_peak(kind.trace) / kind.trace[:, 0]))
    lead = kind.lead()
    low, high = float(lead.low), float(lead.high)
    half = "the loss on the probe has fallen half of its way"
    order = (
        f"The maximum comes before {half}" if low > 0
        else f"The maximum comes after {half}" if high < 0
        else "The maximum and the half fall of the loss on the probe cannot be told apart in time"
    )  # fmt: skip
    return [
        Finding(
            f"{label}: the trace rises {_told(height)} times above its first value before it falls, at step "
            f"{_range(kind.steps[kind.peak])} {count}."
        ),
        Finding(
            f"{order}: ln(step) differs by {_told(lead)}; the half fall is at step "
            f"{_range(kind.steps[kind.fallen])}."
        ),
    ]


def _contrast(true: _Kind, wrong: _Kind) -> Finding:
    """Runs are paired: the sweep gives the same seeds to each share, in the same order."""
    ratio = _interval(torch.from_numpy(np.log(wrong.trace[:, -1] / true.trace[:, -1])))
    low, high = float(ratio.low), float(ratio.high)
    if low <= 0 <= high:
        return Finding("At the end the trace does not depend on whether labels were permuted.")
    factor = np.exp(abs(float(ratio.estimate)))
    text = f"With {wrong.label} the trace at the end is {factor:.3g} times"
    if low > 0:
        return Finding(
            f"{text} larger than with true ones: what cannot be predicted keeps predictions uncertain."
        )
    return Finding(f"{text} smaller than with true ones.")


def _told(interval: Interval) -> str:
    estimate, low, high = (float(x) for x in (interval.estimate, interval.low, interval.high))
    return f"{estimate:.2f} (95 % {low:.2f} to {high:.2f})"


def _range(steps: NDArray) -> str:
    low, middle, high = (int(f(steps)) for f in (np.min, np.median, np.max))
    return str(middle) if low == high else f"{middle} ({low} to {high})"


def _row(kind: _Kind) -> list[str]:
    return [
        kind.label, str(len(kind.trace)), f"{kind.trace[:, 0].mean():.3g}",
        f"{kind.at_peak(kind.trace).mean():.3g}", _range(kind.steps[kind.peak]),
        f"{kind.trace[:, -1].mean():.3g}", _range(kind.steps[kind.fallen]),
    ]  # fmt: skip


def _layers(kinds: Sequence[_Kind]) -> Section:
    rows = []
    for kind in kinds:
        share = kind.layers / kind.layers.sum(2, keepdims=True)
        moments = (share[:, 0], share[np.arange(len(share)), kind.peak], share[:, -1])
        for k, name in enumerate(kind.names):
            rows.append(
                [kind.label, name, *(f"{m[:, k].mean():.0%} ± {m[:, k].std(ddof=1):.0%}" for m in moments)]
            )
    return Section(
        "By layer",
        "Share of each layer in the trace, mean and scatter over seeds.",
        panels=[_layers_panel(kinds)],
        header=["labels", "layer", "at start", "at the maximum", "at end"],
        rows=rows,
    )


def _magnet() -> Section:
    peaks = {spins: fisher_peak(spins=spins) for spins in SPINS}
    shift = [float(peak.beta) - 1 for peak in peaks.values()]
    exponent = np.polyfit(np.log(SPINS), np.log(shift), 1)[0]
    finding = Finding(
        f"The magnet's peak moves to the critical point β = 1 as N^({exponent:.2f}) and grows with its size: "
        + ", ".join(
            f"β = {float(p.beta):.3f}, F/N = {float(p.height):.3f} at N = {n}" for n, p in peaks.items()
        )
        + "."
    )
    return Section(
        "A phase transition",
        "Fisher information per spin about the inverse temperature of the Curie-Weiss magnet, F(β) = Var(E).",
        findings=[finding],
        panels=[_magnet_panel()],
    )


def _course_panel(kinds: Sequence[_Kind]) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 5.4), layout="constrained")
    trace, loss = figure.subplots(2, 1, sharex=True)
    for kind, colour in zip(kinds, cycle(COLOURS), strict=False):
        for axis, values in ((trace, kind.trace), (loss, kind.loss)):
            axis.plot(kind.steps, values.T, "-", color=colour, lw=0.6, alpha=0.5)
            axis.plot(kind.steps, _geometric_mean(values), "-", color=colour, lw=2, label=kind.label)
        trace.plot(kind.steps[kind.peak], kind.at_peak(kind.trace), "v", ms=6, color=colour)
        loss.plot(
            kind.steps[kind.fallen],
            kind.loss[np.arange(len(kind.loss)), kind.fallen],
            "v",
            ms=6,
            color=colour,
        )
    trace.set(ylabel="Tr F", yscale="log")
    loss.set(ylabel="loss on the probe (nat)", xlabel="optimizer step", yscale="log")
    loss.set_xscale("symlog", linthresh=1)
    loss.set_xlim(left=0)
    for axis in (trace, loss):
        axis.spines[["top", "right"]].set_visible(False)
    trace.legend(frameon=False)
    return Panel(
        "Trace and loss",
        figure,
        "Trace of the Fisher information, with labels of the model's own distribution, and the loss: "
        "single seeds thin, geometric mean thick. Triangles: the largest trace, the half fall of the loss.",
    )


def _geometric_mean(values: NDArray) -> NDArray:
    """Over seeds; zero where one of them is, NaN where one has diverged."""
    with np.errstate(divide="ignore"):
        mean: NDArray = np.exp(np.log(values).mean(0))
    return mean


def _layers_panel(kinds: Sequence[_Kind]) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(kinds), 3.6), layout="constrained")
    for axis, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds), sharey=True)), kinds, strict=True):
        share = (kind.layers / kind.layers.sum(2, keepdims=True)).mean(0)
        axis.stackplot(kind.steps, share.T, labels=kind.names, alpha=0.85)
        axis.set_xscale("symlog", linthresh=1)
        axis.set(title=kind.label, xlabel="optimizer step", ylim=(0, 1), xlim=(0, kind.steps[-1]))
    figure.axes[0].set_ylabel("share of Tr F")
    figure.axes[-1].legend(frameon=True, fontsize=8, loc="lower right")
    return Panel("Layers", figure, "Share of each layer's parameters in the trace, mean over seeds.")


def _magnet_panel() -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axis = figure.subplots()
    beta = torch.linspace(0.5, 1.6, 441, dtype=torch.float64)
    for spins, colour in zip(SPINS, cycle(COLOURS), strict=False):
        (peak, height) = (float(x) for x in (fisher_peak(spins=spins).beta, fisher_peak(spins=spins).height))
        axis.plot(beta, fisher_information(beta, spins=spins) / spins, color=colour, label=f"N = {spins}")
        axis.plot(peak, height, "o", ms=5, color=colour)
    axis.axvline(1, color="0.5", ls=":", lw=1)
    axis.set(xlabel="inverse temperature β", ylabel="Fisher information per spin F/N")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return Panel("Magnet", figure, "Exact; the dotted line is the critical point of the infinite magnet.")

"""The run of the loop laid over the closed form: modes of a linear map that are learnt one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from observatory.ntk.stages import Stages, find_stages
from observatory.ntk.stages_figures import in_words, mark_stages
from observatory.numerics.statistics import fit_line
from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.solvable.deep_linear import half_times, kernel_entropy, kernel_trace, mode_strengths
from observatory.studies.linear_map import STRENGTHS
from observatory.studies.study import Conclusion, FinishedRun, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATE = "model.init_args.optimizer.init_args.lr"
CLOSE = 0.01  # of the closed form: what the finest run must reach


@dataclass(frozen=True)
class _Course:
    """A run and the gradient flow that it follows; R records, d modes."""

    step_time: float  # t of one step
    steps: Tensor  # (R,)
    found: Tensor  # strengths from the kernel's spectrum, (R, d), falling
    exact: Tensor  # closed form at the same times, (R, d)
    entropy: Tensor  # of the full kernel, from the strengths, (R,)

    @property
    def times(self) -> Tensor:
        return self.steps * self.step_time

    @property
    def deviation(self) -> float:
        """max |s - s(t)|/σ₁."""
        return float((self.found - self.exact).abs().max() / self.exact.max())

    def half_times(self, targets: Tensor) -> Tensor:
        """When each mode passes half of its target; NaN for what the run ends before. ln s/(σ - s) is linear
        in time: two looks beside the crossing give it."""
        share = (self.found / targets).clamp(1e-12, 1 - 1e-12)
        logit = (share / (1 - share)).log()  # (R, d)
        after = (logit > 0).int().argmax(0)
        before = (after - 1).clamp_min(0)
        modes = torch.arange(len(targets))
        a, b = logit[before, modes], logit[after, modes]
        crossing = self.times[before] + (self.times[after] - self.times[before]) * a / (a - b)
        return torch.where((a < 0) & (b > 0), crossing, torch.nan)

    def stages(self) -> Stages:
        return find_stages(self.steps.numpy(), self.entropy.numpy())


class DeepLinear(Study):
    """A two-layer linear network learns U diag(σ) Vᵀ: the Lightning loop against the exact gradient flow.

    On the unit vectors the trace-contracted kernel has the eigenvalues d s_α + Σ s, from which every look
    gives the strengths s_α of all modes, and these the full kernel's eigenvalues s_α + s_β, its trace and its
    entropy. Runs of several learning rates show that what is left is the step size of gradient descent.
    (Saxe, McClelland, Ganguli 2014, arXiv:1312.6120.)

    Args:
        strengths: σ of the map.
        start: s₀ of the network.
        instrument: name of the one that recorded the kernel.
    """

    title = "Deep linear network: the run laid over the closed form"

    def __init__(
        self, strengths: Sequence[float] = STRENGTHS, start: float = 1e-3, instrument: str = "ntk"
    ) -> None:
        self.targets = torch.tensor(strengths, dtype=torch.float64)
        self.start, self.instrument = start, instrument

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        if len({point.get(RATE) for point in points}) < 2:
            raise ValueError(f"the study compares step sizes: sweep {RATE} with at least two values")

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        courses = sorted((self._course(run) for run in runs), key=lambda course: course.step_time)
        finest = courses[0]
        stages = finest.stages()
        findings = [*self._agreement(courses), self._turning_point(stages, finest.step_time)]
        panels = [_modes_panel(finest), _variables_panel(finest, stages), _deviation_panel(courses)]
        return Conclusion([Section("Verdict", findings=findings, panels=panels), self._half_times(finest)])

    def _course(self, run: FinishedRun) -> _Course:
        spectrum = run.record[f"{self.instrument}/spectrum"]
        d = len(self.targets)
        eigenvalues = torch.tensor(spectrum.values, dtype=torch.float64)
        strengths = (eigenvalues - eigenvalues.sum(1, keepdim=True) / (2 * d)) / d  # Tr K = 2d Σ s
        # mean squared error of d · d numbers: its gradient is 2/d² of that of half the squares
        step_time = 2 / d**2 * float(run.point[RATE])
        steps = torch.tensor(spectrum.steps, dtype=torch.float64)
        exact = mode_strengths(self.targets, steps * step_time, start=self.start)
        return _Course(step_time, steps, strengths, exact, kernel_entropy(strengths.clamp_min(0)))

    def _agreement(self, courses: Sequence[_Course]) -> list[Finding]:
        finest = courses[0]
        trace = (kernel_trace(finest.found) / kernel_trace(finest.exact) - 1).abs().max()
        entropy = (finest.entropy - kernel_entropy(finest.exact)).abs().max()
        good = finest.deviation < CLOSE
        sizes = torch.tensor([[c.step_time, c.deviation] for c in courses], dtype=torch.float64).log()
        order = fit_line(sizes[:, 0], sizes[:, 1])
        return [
            Finding(
                f"The run follows the gradient flow{'' if good else ' only roughly'}: at a step of "
                f"t = {finest.step_time:.2g} every mode stays within {finest.deviation:.1e} of the largest "
                f"strength, the kernel's trace within {float(trace):.1e} of its own, its entropy within "
                f"{float(entropy):.1e} nat, over {len(finest.steps)} looks.",
                "result" if good else "warning",
            ),
            Finding(
                f"What is left is the step size: the deviation grows as its power {float(order.slope):.2f} "
                f"over {len(courses)} learning rates, as it does for Euler's method (1)."
            ),
        ]

    def _turning_point(self, stages: Stages, step_time: float) -> Finding:
        first = float(half_times(self.targets, start=self.start)[0])
        intervals = [(a * step_time, b * step_time) for a, b in stages.turning_points]
        near = next(((a, b) for a, b in intervals if a - 0.25 <= first <= b + 0.25), None)
        course = f"In steps, the entropy's course is {in_words(stages)}."
        if near is None:
            return Finding(
                f"No turn of the entropy near t = {first:.3f}, the first half time. {course}", "warning"
            )
        where = f"{near[0]:.3g}" if near[0] == near[1] else f"between {near[0]:.3g} and {near[1]:.3g}"
        return Finding(
            f"Compression turns into structure formation at t = {where}, when the first mode is learnt "
            f"(half time {first:.3f}). {course}"
        )

    def _half_times(self, course: _Course) -> Section:
        exact, found = half_times(self.targets, start=self.start), course.half_times(self.targets)
        rows = [
            [f"{s:g}", f"{t:.4f}", "not reached" if f.isnan() else f"{f:.4f}"]
            for s, t, f in zip(self.targets, exact, found, strict=True)
        ]
        text = "Strong modes are learnt first: t = ln(σ/s₀ - 1)/(2σ)."
        return Section("Half times", text, header=["σ", "closed form", "run"], rows=rows)


def _modes_panel(course: _Course) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axis = figure.subplots()
    for k in range(course.found.shape[1]):
        (line,) = axis.plot(course.times, course.exact[:, k], "-", lw=1)
        axis.plot(course.times, course.found[:, k], "o", ms=4, color=line.get_color())
    _in_time(axis, course, "strength s of each mode")
    return Panel(
        "Modes",
        figure,
        "Strength of each mode of the network, read off the spectrum of its kernel at every look (points), "
        "and the closed form (lines).",
    )


def _variables_panel(course: _Course, stages: Stages) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    entropy, trace = figure.subplots(2, 1, sharex=True)
    for axis, found, exact, label in (
        (entropy, course.entropy, kernel_entropy(course.exact), "entropy S (nat)"),
        (trace, kernel_trace(course.found), kernel_trace(course.exact), "trace of the kernel"),
    ):
        axis.plot(course.steps, exact, "-", lw=1, color="0.4", label="closed form")
        axis.plot(course.steps, found, "o", ms=3.5, label="run")
        axis.set(ylabel=label)
        axis.spines[["top", "right"]].set_visible(False)
    mark_stages(entropy, stages)
    trace.set(xlabel="optimizer step", yscale="log")
    trace.set_xscale("symlog", linthresh=1)
    trace.set_xlim(0, float(course.steps[-1]))
    entropy.legend(frameon=False)
    return Panel(
        "Entropy and trace",
        figure,
        "Entropy and trace of the full tangent kernel. Stages found in the entropy are shaded: blue falls "
        "(information compression), grey rests, orange rises (structure formation).",
    )


def _deviation_panel(courses: Sequence[_Course]) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 4.0), layout="constrained")
    axis = figure.subplots()
    sizes, deviations = [c.step_time for c in courses], [c.deviation for c in courses]
    axis.loglog(sizes, deviations, "o", ms=5, label="runs")
    axis.loglog(sizes, [deviations[0] * s / sizes[0] for s in sizes], "--", color="0.5", label="∝ step")
    axis.set_xticks(sizes, [f"{size:g}" for size in sizes], minor=False)
    axis.set_xticks([], minor=True)
    axis.set(xlabel="time of one step", ylabel="largest deviation of a mode / σ₁")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return Panel("Step size", figure, "How far the run is from the gradient flow, against the step size.")


def _in_time(axis: Axes, course: _Course, label: str) -> None:
    axis.set_xscale("log")
    axis.set_xlim(0.1, float(course.times[-1]) * 1.05)
    axis.set(xlabel="time t", ylabel=label)
    axis.spines[["top", "right"]].set_visible(False)

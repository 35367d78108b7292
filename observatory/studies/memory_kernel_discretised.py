"""Memory kernels of positions that are recorded rarely: two routes, over the time step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from observatory.physics.gle.barrier import overdamped_passage_time
from observatory.physics.gle.incumbent import TOLD_APART
from observatory.physics.gle.potentials import DoubleWell
from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.studies.study import Conclusion, FinishedRun, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEP = "data.init_args.dt"
DIRECT, FITTED = "#4c72b0", "#c44e52"
CLOSE = {"friction": 0.1, "memory_time": 0.2}  # relative; how near the truth counts as found
NAMES = {"friction": "friction γ", "memory_time": "memory time τ", "mass": "mass m"}


@dataclass(frozen=True)
class _Step:
    """What both routes found at one time step."""

    dt: float
    direct: dict[str, float]
    fitted: dict[str, float]
    low: dict[str, float]  # of what the data do not exclude
    high: dict[str, float]
    excess: float  # ≤ 0: the fit cannot be told from the data
    positions: int
    bound: dict[str, float]  # of ln, the least standard error; empty where moments were refined on

    def identified(self, name: str) -> bool:
        return self.excess <= TOLD_APART and self.high[name] < 2 * self.low[name]


class MemoryKernelDiscretised(Study):
    """Direct inversion and a fit of the simulated equation at time steps below and above the memory time.

    Direct inversion needs Δt below the memory time; the correlations of a simulated equation, thinned to the
    same Δt, can be matched to those of the data as long as Δt lies below the slowest time, the crossing of
    the barrier. (Tepper, Dalton, Netz, J. Chem. Theory Comput. 20, 3061 (2024), arXiv:2401.09249.) Where the
    fit was refined on the likelihood of the positions, the bound of Cramér and Rao stands beside it.

    Args:
        gamma: the γ of the data.
        tau: its τ.
        mass: m.
        barrier: U₀/kT of the well of width 1, for the slowest time.
    """

    title = "Memory kernels of rarely recorded positions"

    def __init__(self, gamma: float, tau: float, mass: float, barrier: float) -> None:
        self.truth = {"friction": gamma, "memory_time": tau, "mass": mass}
        self.tau = tau
        self.slowest = overdamped_passage_time(DoubleWell(barrier), gamma, 1.0, start=-1.0, end=1.0)

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        if len({point.get(STEP) for point in points}) < 2:
            raise ValueError(f"the study goes over time steps: sweep {STEP} (with the method's dt)")

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        steps = sorted((_read(run) for run in runs), key=lambda step: step.dt)
        header = ["Δt/τ", "quantity", "true", "direct", "fitted", "not excluded", "loss over noise"]
        verdict = Section(
            "Verdict",
            findings=self._findings(steps),
            panels=[
                Panel(
                    "What each route finds",
                    self._figure(steps),
                    "Each quantity over its true value, at time steps in units of the memory time. Blue: "
                    "direct inversion of the correlations. Red: the equation simulated, thinned and "
                    "estimated like the data, then refined; bars are 95 % ranges, joined over all unlike "
                    "sets that explain the data, within the range searched. Open symbols are not identified "
                    "(the bar spans a factor of two or more). Grey bands, where the likelihood of the "
                    "positions was climbed: two of the least standard errors that an unbiased estimator can "
                    "have. Vertical lines: memory time, and time to cross the barrier.",
                )
            ],
            header=header,
            rows=[row for step in steps for row in self._rows(step)],
        )
        return Conclusion([verdict])

    def _findings(self, steps: Sequence[_Step]) -> list[Finding]:
        found = [Finding(self._reach(steps, "memory_time", "direct", "Direct inversion"))]
        found.append(Finding(self._plateau(steps)))
        for name in ("friction", "memory_time"):
            text = self._reach(steps, name, "fitted", "The fit of simulations")
            found.append(Finding(f"{text} {self._range(steps, name)}"))
        found += [Finding(self._known(step)) for step in steps if step.bound]
        found += [Finding(text) for name in ("memory_time", "mass") for text in self._open(steps, name)]
        apart = [step.dt / self.tau for step in steps if step.excess > TOLD_APART]
        if apart:
            told = ", ".join(f"{x:.3g}" for x in apart)
            found.append(
                Finding(f"At Δt/τ = {told} the best simulation can still be told from the data.", "note")
            )
        return found

    def _reach(self, steps: Sequence[_Step], name: str, route: str, who: str) -> str:
        """Up to which step a route is within its tolerance, from the smallest on."""
        last = None
        for step in steps:
            if abs(getattr(step, route)[name] / self.truth[name] - 1) > CLOSE[name]:
                break
            last = step
        bound = f"finds the {NAMES[name]} within {CLOSE[name]:.0%}"
        worst = steps[-1]
        ratio = getattr(worst, route)[name] / self.truth[name]
        if last is None:
            return (
                f"{who} at no step {bound}; at Δt = {worst.dt / self.tau:.3g} τ it is {ratio:.3g} times it."
            )
        return (
            f"{who} {bound} up to Δt = {last.dt / self.tau:.3g} τ; at Δt = {worst.dt / self.tau:.3g} τ it is "
            f"{ratio:.3g} times the true one."
        )

    def _plateau(self, steps: Sequence[_Step]) -> str:
        within = [s for s in steps if s.dt <= 5 * self.tau * (1 + 1e-9)]
        worst = max(abs(s.direct["friction"] / self.truth["friction"] - 1) for s in within)
        last = within[-1].dt / self.tau
        return f"The plateau of G stays within {worst:.0%} of the friction up to Δt = {last:.3g} τ."

    def _range(self, steps: Sequence[_Step], name: str) -> str:
        below = [s for s in steps if s.dt < self.slowest]
        known = [s for s in below if s.low[name] <= self.truth[name] <= s.high[name]]
        off = np.median([abs(s.fitted[name] / self.truth[name] - 1) for s in below])
        sharp = [s.dt / self.tau for s in below if s.identified(name)]
        reach = f" The data identify it up to Δt = {max(sharp):.3g} τ." if sharp else ""
        return (
            f"The median error is {off:.1%}, and the 95 % range holds the true one at {len(known)} of "
            f"{len(below)} steps below the slowest time.{reach}"
        )

    def _known(self, step: _Step) -> str:
        """What the positions of a step can tell at best, and how far off the fit is."""
        best = ", ".join(f"{step.bound[name]:.1%} in the {NAMES[name]}" for name in NAMES)
        off = ", ".join(f"{step.fitted[name] / self.truth[name] - 1:+.1%}" for name in NAMES)
        close = CLOSE["memory_time"]
        needed = step.positions * (2 * step.bound["memory_time"] / close) ** 2
        return (
            f"At Δt = {step.dt / self.tau:.3g} τ no unbiased estimator has smaller standard errors than "
            f"{best} from {_counted(step.positions)} positions (Cramér and Rao); the fit is off by {off}. "
            f"Two standard errors of the memory time are below {close:.0%} from {_counted(needed)} positions "
            "on."
        )

    def _open(self, steps: Sequence[_Step], name: str) -> list[str]:
        """Where a quantity is not identified, and what would do as well."""
        unknown = [step for step in steps if not step.identified(name)]
        if not unknown:
            return []
        told = ", ".join(f"{step.dt / self.tau:.3g}" for step in unknown)
        first = unknown[0]
        return [
            f"The {NAMES[name]} is not identified at Δt/τ = {told}: at {first.dt / self.tau:.3g} values from "
            f"{first.low[name]:.2g} to {first.high[name]:.2g} explain the data as well."
        ]

    def _rows(self, step: _Step) -> list[list[str]]:
        return [
            [
                f"{step.dt / self.tau:.3g}",
                NAMES[name],
                f"{self.truth[name]:.3g}",
                f"{step.direct[name]:.3g}",
                f"{step.fitted[name]:.3g}",
                f"{step.low[name]:.3g} to {step.high[name]:.3g}",
                f"{np.exp(step.excess):.2f}" if name == "friction" else "",
            ]
            for name in NAMES
        ]

    def _figure(self, steps: Sequence[_Step]) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.5, 3.9), layout="constrained")
        axes = figure.subplots(1, 3, sharex=True)
        for axis, name in zip(axes, ("friction", "memory_time", "mass"), strict=True):
            self._draw(axis, steps, name)
        axes[0].legend(frameon=False, loc="upper left", fontsize=9)
        figure.supxlabel("time step over memory time, Δt/τ", fontsize=10)
        return figure

    def _draw(self, axis: Axes, steps: Sequence[_Step], name: str) -> None:
        true = self.truth[name]
        x = np.array([step.dt / self.tau for step in steps])
        axis.axhline(1, color="0.5", lw=0.9)
        axis.loglog(
            x,
            [s.direct[name] / true for s in steps],
            "o-",
            color=DIRECT,
            ms=5,
            lw=1,
            label="direct inversion",
        )
        for step, at in zip(steps, x * 1.06, strict=True):
            ends = np.array([step.low[name], step.high[name]]) / true
            sharp = step.identified(name)
            axis.plot([at, at], ends, color=FITTED, lw=2.2 if sharp else 0.9, alpha=0.8 if sharp else 0.5)
            axis.plot(
                at, step.fitted[name] / true, "s", color=FITTED, ms=5, mfc=FITTED if sharp else "white",
                label="fit of simulations" if step is steps[0] else None,
            )  # fmt: skip
        known = [(step.dt / self.tau, 2 * step.bound[name]) for step in steps if step.bound]
        if known:
            at, wide = np.array(known).T
            edges = np.exp(-wide), np.exp(wide)
            axis.fill_between(at, *edges, color="0.5", alpha=0.25, lw=0, label="what positions can tell")
        for line, text in ((1.0, "τ"), (self.slowest / self.tau, "crossing")):
            axis.axvline(line, color="0.6", ls=":", lw=1)
            axis.annotate(text, (line, 0.55), xycoords=("data", "axes fraction"), ha="right", va="center",
                          rotation=90, color="0.4", fontsize=9)  # fmt: skip
        lowest = min(step.low[name] for step in steps) / true
        axis.set(ylim=(min(0.4, 0.8 * lowest), 60), title=f"{NAMES[name]}, over the true one")
        axis.spines[["top", "right"]].set_visible(False)


def _counted(number: float) -> str:
    """To two digits and in thousands, with spaces between."""
    return f"{float(f'{number:.2g}'):,.0f}".replace(",", "\N{NO-BREAK SPACE}")


def _read(run: FinishedRun) -> _Step:
    fitted, low, high = (
        {name: run.metric(f"train/{name}{end}") for name in NAMES} for end in ("", "_low", "_high")
    )
    direct = {name: run.metric(f"train/direct_{name}") for name in NAMES}
    bound = {name: run.metrics.get(f"train/bound_{name}", math.inf) for name in NAMES}
    if not all(math.isfinite(value) for value in bound.values()):
        bound = {}
    return _Step(
        float(run.point[STEP]),
        direct,
        fitted,
        low,
        high,
        run.metric("train/excess"),
        int(run.metric("train/positions")),
        bound,
    )

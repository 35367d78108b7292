"""Depth and width: does training compress the information in the tangent kernel, or does structure form?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from observatory.ntk.stages import Stages
from observatory.ntk.stages_figures import in_words, mark_stages, stages_or_none
from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.studies.study import Conclusion, FinishedRun, Study

WIDTHS = "model.init_args.network.init_args.widths"
OUTCOMES = {-1: "information compression", 0: "no change beyond the scatter", 1: "structure formation"}
COLOURS = "viridis"
CONFIDENCE = 0.975  # one-sided, of Student's t: few seeds need more standard errors than two


@dataclass(frozen=True)
class _Family:
    """All seeds of one depth and width; S seeds, R records."""

    depth: int  # hidden layers
    width: int
    steps: NDArray  # (R,)
    entropy: NDArray  # (S, R)
    loss: NDArray  # on the test split, (S,)

    @property
    def change(self) -> tuple[float, float]:
        """S(end) - S(start), its mean over seeds and the standard error of that."""
        change = self.entropy[:, -1] - self.entropy[:, 0]
        return float(change.mean()), float(change.std(ddof=1) / len(change) ** 0.5)

    @property
    def sign(self) -> int:
        from scipy.stats import t

        mean, error = self.change
        errors = float(t.ppf(CONFIDENCE, len(self.entropy) - 1))
        return 0 if abs(mean) <= errors * error else int(np.sign(mean))

    @property
    def label(self) -> str:
        return f"{self.depth} x {self.width}"

    def stages(self) -> Stages | None:
        """Of the mean over seeds, whose standard error is the noise."""
        errors = self.entropy.std(0, ddof=1) / len(self.entropy) ** 0.5
        return stages_or_none(self.steps, self.entropy.mean(0), noise=float(np.median(errors)))


class CollectiveVariables(Study):
    """The entropy of the kernel from the first step to the last, for several depths and widths.

    A fall over the whole run is called information compression, a rise structure formation, where the 95 %
    interval of the mean over seeds (Student's t) leaves out zero. (Tovey et al. 2024, arXiv:2410.07451.)

    Args:
        widths: the swept key with the widths of a network from inputs to outputs, hidden ones all equal.
        instrument: name of the one that recorded the kernel.
    """

    title = "Collective variables: compression against structure formation"

    def __init__(self, widths: str = WIDTHS, instrument: str = "ntk") -> None:
        self.widths, self.instrument = widths, instrument

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        if any(self.widths not in point for point in points):
            raise ValueError(f"the study compares depths and widths: sweep {self.widths}")
        shapes = [tuple(point[self.widths]) for point in points]
        if len({len(s) for s in shapes}) < 2 or any(shapes.count(s) < 2 for s in shapes):
            raise ValueError(f"the study needs two depths and two seeds of each network, got {shapes}")

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        families = self._families(runs)
        verdict = [*_by_depth(families), _by_width(families)]
        course = [_course(family) for family in families]
        return Conclusion(
            [
                Section(
                    "Verdict",
                    findings=verdict,
                    panels=[_change_panel(families), _evolution_panel(families)],
                    header=[
                        "depth",
                        "width",
                        "seeds",
                        "S at start",
                        "S at end",
                        "change",
                        "outcome",
                        "test loss",
                    ],
                    rows=[_row(family) for family in families],
                ),
                Section("Stages", "Of the mean entropy over seeds.", findings=course),
            ]
        )

    def _families(self, runs: Sequence[FinishedRun]) -> list[_Family]:
        groups: dict[tuple[int, ...], list[FinishedRun]] = {}
        for run in runs:
            groups.setdefault(tuple(run.point[self.widths]), []).append(run)
        found = []
        for shape, members in groups.items():
            entropies = [run.record[f"{self.instrument}/entropy"] for run in members]
            loss = np.array([run.metric("test/loss") for run in members])
            values = np.stack([np.asarray(entropy.values) for entropy in entropies])
            found.append(_Family(len(shape) - 2, max(shape[1:-1]), entropies[0].steps, values, loss))
        return sorted(found, key=lambda family: (family.depth, family.width))


def _by_depth(families: Sequence[_Family]) -> list[Finding]:
    """One sentence per depth, for all of its widths."""
    found = []
    for depth in sorted({family.depth for family in families}):
        ours = [family for family in families if family.depth == depth]
        layers = "One hidden layer" if depth == 1 else f"{depth} hidden layers"
        changes = ", ".join(f"{f.change[0]:+.2f} ± {f.change[1]:.2f} at {f.width}" for f in ours)
        signs = {family.sign for family in ours}
        outcome = OUTCOMES[signs.pop()] if len(signs) == 1 else "the outcome depends on the width"
        found.append(Finding(f"{layers}: {outcome}; the entropy changes by {changes} (nat, at width)."))
    return found


def _by_width(families: Sequence[_Family]) -> Finding:
    means = torch.tensor([family.change[0] for family in families], dtype=torch.float64)
    depths, widths = (torch.tensor([getattr(f, name) for f in families]) for name in ("depth", "width"))

    def explained(labels: torch.Tensor) -> float:
        group = torch.stack([means[labels == label].mean() for label in labels])
        return float((group - means.mean()).square().sum() / (means - means.mean()).square().sum())

    by_depth, by_width = explained(depths), explained(widths)
    stronger = "depth" if by_depth > by_width else "width"
    return Finding(
        f"What decides is {stronger}: depth accounts for {by_depth:.0%} of the variance of the change "
        f"between networks, width for {by_width:.0%}."
    )


def _course(family: _Family) -> Finding:
    stages = family.stages()
    told = "too few looks for stages" if stages is None else in_words(stages)
    return Finding(f"{family.label}: {told}")


def _row(family: _Family) -> list[str]:
    mean, error = family.change
    first, last = family.entropy[:, 0].mean(), family.entropy[:, -1].mean()
    return [
        str(family.depth), str(family.width), str(len(family.entropy)), f"{first:.2f}", f"{last:.2f}",
        f"{mean:+.2f} ± {error:.2f}", OUTCOMES[family.sign], f"{family.loss.mean():.3f}",
    ]  # fmt: skip


def _colours(count: int) -> NDArray:
    import matplotlib

    found: NDArray = matplotlib.colormaps[COLOURS](np.linspace(0, 0.85, count))
    return found


def _change_panel(families: Sequence[_Family]) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axis = figure.subplots()
    depths = sorted({family.depth for family in families})
    for depth, colour in zip(depths, _colours(len(depths)), strict=True):
        ours = [family for family in families if family.depth == depth]
        means, errors = zip(*(family.change for family in ours), strict=True)
        label = f"{depth} hidden layer{'s' if depth > 1 else ''}"
        axis.errorbar(
            [f.width for f in ours], means, errors, fmt="o-", ms=5, capsize=3, color=colour, label=label
        )
    axis.axhline(0, color="0.5", lw=1, ls=":")
    widths = sorted({family.width for family in families})
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(w) for w in widths])
    axis.set(xlabel="width", ylabel="change of entropy S(end) - S(start) (nat)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return Panel(
        "Compression or structure",
        figure,
        "Change of the kernel's entropy over the run, mean over seeds with its standard error: below the "
        "dotted line information is compressed, above it structure forms.",
    )


def _evolution_panel(families: Sequence[_Family]) -> Panel:
    from matplotlib.figure import Figure

    depths = sorted({family.depth for family in families})
    figure = Figure(figsize=(3.4 * len(depths), 3.6), layout="constrained")
    for axis, depth in zip(np.atleast_1d(figure.subplots(1, len(depths), sharey=True)), depths, strict=True):
        ours = [family for family in families if family.depth == depth]
        for family, colour in zip(ours, _colours(len(ours)), strict=True):
            mean, spread = family.entropy.mean(0), family.entropy.std(0, ddof=1)
            axis.plot(family.steps, mean, "-", color=colour, lw=1.4, label=f"width {family.width}")
            axis.fill_between(family.steps, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
        mark_stages(axis, ours[len(ours) // 2].stages())
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(0, ours[0].steps[-1])
        axis.set(title=f"{depth} hidden layer{'s' if depth > 1 else ''}", xlabel="optimizer step")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("entropy S (nat)")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return Panel(
        "Entropy during training",
        figure,
        "Mean over seeds with its scatter. Shaded: stages of the middle width, blue falls, grey rests, "
        "orange rises.",
    )

"""How the dimension of representations changes along the depth of a network that sees images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.studies.study import Conclusion, FinishedRun, Study, with_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = {
    "levina_bickel": "dimension (MLE)",
    "two_nn": "dimension (TwoNN)",
    "class_two_nn": "within one class (TwoNN)",
    "components_90": "PCs for 90 % of variance",
    "participation_ratio_debiased": "participation ratio, debiased",
    "class_purity": "neighbours of the same class",
}
SHORT = ("MLE", "TwoNN", "in a class", "PCs, 90 %", "PR", "purity")
DECIDING = ("levina_bickel", "two_nn", "class_two_nn")
DIGITS = {"components_90": 0, "participation_ratio_debiased": 0, "class_purity": 2}
LEVEL = 0.05
LARGE = 10
UNSURE = "rest on too few points to be read as numbers: compare layers with layers, and before with after."


@dataclass(frozen=True)
class _Moment:
    """All seeds at one look; S seeds, K hidden layers."""

    label: str
    depth: NDArray  # (K,)
    values: Mapping[str, NDArray]  # by quantity, (S, K)

    def mean(self, name: str) -> tuple[NDArray, NDArray]:
        """Mean over seeds and its standard error."""
        values = self.values[name]
        return np.nanmean(values, 0), np.nanstd(values, 0, ddof=1) / len(values) ** 0.5


class RepresentationGeometry(Study):
    """Intrinsic dimension over relative depth before and after training, and whether it is a hunchback.

    Ansuini, Laio, Macke, Zoccolan (2019, arXiv:1905.12784) find that it first rises and then falls in trained
    networks and stays flat in untrained ones. A maximum counts if it lies inside and exceeds both ends in the
    mean over seeds at 5 % significance (paired, one-sided t test).

    Args:
        instrument: name of the one that recorded the profiles.
    """

    title = "Representation geometry: dimension along the depth"

    def __init__(self, instrument: str = "dimension") -> None:
        self.instrument = instrument

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        if len(points) < 2:
            raise ValueError(f"the study needs at least two seeds, got {len(points)} run")

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        before, after = self._moment("before training", runs, 0), self._moment("after training", runs, -1)
        accuracy = np.array([run.metric("test/accuracy") for run in runs])
        findings = [_verdict(before, after)]
        findings += [_shape(moment, name) for name in DECIDING for moment in (after, before)]
        findings += [_linear(after), _purity(before, after)]
        told = with_error(accuracy.mean(), _error(accuracy), 2)
        if max(after.mean(name)[0].max() for name in DECIDING) > LARGE:
            findings.append(Finding(f"Dimensions above {LARGE} {UNSURE}", "note"))
        findings += [
            Finding(
                "p is that of the layer of the largest mean, chosen from the same seeds: optimistic.", "note"
            ),
            Finding(f"{len(runs)} seeds; test accuracy {told}.", "note"),
        ]
        rows = [_row(k, before, after) for k in range(len(after.depth))]
        table = Section(
            "Layers",
            "Means over seeds with standard errors, after training; in brackets before.",
            header=["depth", *SHORT],
            rows=rows,
        )
        verdict = Section("Verdict", findings=findings, panels=[_panel(before, after)])
        return Conclusion([verdict, table])

    def _moment(self, label: str, runs: Sequence[FinishedRun], look: int) -> _Moment:
        records = [run.record.instrument(self.instrument) for run in runs]
        missing = [name for name in SHOWN if name not in records[0]]
        if missing:
            raise ValueError(f"{', '.join(missing)} were not recorded: ask for the estimator 'per_class' too")
        values = {name: np.stack([np.asarray(r[name].values[look]) for r in records]) for name in SHOWN}
        return _Moment(label, np.asarray(records[0]["depth"].values[look]), values)


def _error(values: NDArray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def hunchback(profiles: NDArray) -> tuple[int, float]:
    """Layer of the largest mean of profiles (seeds, layers), and the larger p of two t tests that it exceeds
    the first and the last layer; p = 1 for a maximum at an end.
    """
    top = int(profiles.mean(0).argmax())
    if top in (0, profiles.shape[1] - 1):
        return top, 1.0
    excess = profiles[:, [top]] - profiles[:, [0, -1]]
    error = excess.std(0, ddof=1) / len(excess) ** 0.5
    return top, float(student.sf(excess.mean(0) / error, len(excess) - 1).max())


def _verdict(before: _Moment, after: _Moment) -> Finding:
    """What the tests of the deciding quantities say together."""
    counts = [
        sum(hunchback(moment.values[name])[1] < LEVEL for name in DECIDING) for moment in (after, before)
    ]
    learnt, given = (_of(count, len(DECIDING)) for count in counts)
    return Finding(
        f"Along the depth the dimension rises and then falls, a hunchback: after training by {learnt} "
        f"estimates, before training by {given}."
    )


def _of(count: int, size: int) -> str:
    return f"none of the {size}" if count == 0 else f"all {size}" if count == size else f"{count} of {size}"


def _shape(moment: _Moment, name: str) -> Finding:
    mean, error = moment.mean(name)
    top, p = hunchback(moment.values[name])
    first, last = with_error(mean[0], error[0]), with_error(mean[-1], error[-1])
    ends = f"{first} in the first hidden layer, {last} in the last"
    what = f"{SHOWN[name][0].upper()}{SHOWN[name][1:]}, {moment.label}"
    at = f"{with_error(mean[top], error[top])} at relative depth {moment.depth[top]:.2f}"
    if p < LEVEL:
        return Finding(f"{what}: a hunchback, {at} (p = {p:.2g}); {ends}.")
    if top in (0, len(mean) - 1):
        return Finding(
            f"{what}: no hunchback, largest at the {'first' if top == 0 else 'last'} layer; {ends}."
        )
    return Finding(f"{what}: no significant hunchback; largest {at} (p = {p:.2g}); {ends}.")


def _linear(after: _Moment) -> Finding:
    """Curvature: a flat manifold needs as many components as it has dimensions."""
    ratio = (after.values["components_90"] / after.values["levina_bickel"]).mean(0)
    top = int(ratio.argmax())
    curved = ", where the manifolds are curved," if ratio[top] > 2 else ""
    return Finding(
        f"After training, components for 90 % of the variance are up to {ratio[top]:.1f} times the intrinsic "
        f"dimension, at relative depth {after.depth[top]:.2f}{curved} and {ratio[-1]:.1f} times in the last "
        "hidden layer."
    )


def _purity(before: _Moment, after: _Moment) -> Finding:
    (b, _), (a, error) = before.mean("class_purity"), after.mean("class_purity")
    return Finding(
        f"Neighbours of the same class: {100 * a[0]:.0f} % in the first hidden layer and "
        f"{with_error(100 * a[-1], 100 * error[-1])} % in the last after training, {100 * b[0]:.0f} and "
        f"{100 * b[-1]:.0f} % before."
    )


def _row(k: int, before: _Moment, after: _Moment) -> list[str]:
    cells = []
    for name in SHOWN:
        digits = DIGITS.get(name, 1)
        (a, error), (b, _) = after.mean(name), before.mean(name)
        cells.append(f"{with_error(a[k], error[k], digits)} ({b[k]:.{digits}f})")
    return [f"{after.depth[k]:.2f}", *cells]


def _panel(before: _Moment, after: _Moment) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 7.6), layout="constrained")
    axes = figure.subplots(3, 2, sharex=True).ravel()
    for axis, (name, label) in zip(axes, SHOWN.items(), strict=True):
        for moment, colour in ((before, "0.6"), (after, "tab:red")):
            mean, error = moment.mean(name)
            axis.plot(moment.depth, moment.values[name].T, "-", lw=0.6, color=colour, alpha=0.4)
            axis.errorbar(
                moment.depth, mean, error, fmt="o-", ms=4, lw=1.4, capsize=2, color=colour, label=moment.label
            )
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        _bare(axis)
    for axis in axes[-2:]:
        axis.set_xlabel("relative depth")
    axes[0].legend(frameon=False)
    return Panel(
        "Along the depth",
        figure,
        "Means over seeds with standard errors, thin lines single seeds. Depth counts weight layers on the "
        "longest way from input to output.",
    )


def _bare(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)

"""Do dimension and focusing oscillate from layer to layer, and what does training do to them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

from observatory.dimension import null_staggered, phase_over_seeds
from observatory.dimension.figures_orders import LABELS, lengths
from observatory.dimension.oscillation import p_floor
from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.studies.study import Conclusion, FinishedRun, Study, with_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAIN = "model.init_args.network.init_args.gain"
SHARE = "data.init_args.shuffle_labels"
COLOURS = ("tab:blue", "tab:red", "tab:green", "tab:purple")
LEVEL = 0.05


@dataclass(frozen=True)
class _Condition:
    """All seeds of one kind of network at one moment; S seeds, K hidden layers, P profiles."""

    label: str
    depth: NDArray  # (K,)
    values: Mapping[str, NDArray]  # by quantity, (S, ...), at that moment
    profiles: Mapping[str, int]  # name to its number of layers

    def mean(self, name: str) -> tuple[NDArray, NDArray]:
        """Mean over seeds and its standard error."""
        values = self.values[name]
        return values.mean(0), values.std(0, ddof=1) / len(values) ** 0.5

    def carried(self) -> NDArray:
        """Effective nodes of the paths over the width, mean over all but the last hidden layer, (S,)."""
        return (self.values["path_effective_nodes"] / self.values["nodes"])[:, :-1].mean(1)


class LayerDimensionality(Study):
    """Profiles over the hidden layers at initialisation, trained, and trained on permuted labels.

    Whether they oscillate with period two is decided against noise: by how many seeds pass a permutation test
    and by whether the phase repeats between seeds. (Claimed by de Jong, Meigel, Rulands, DPG Spring Meeting
    2024, SOE 8.11, of which no definitions are published: those used here are this package's own.)

    Args:
        instrument: name of the one that recorded the profiles.
    """

    title = "Layer dimensionality: do focusing and dimension oscillate from layer to layer?"

    def __init__(self, instrument: str = "dimension") -> None:
        self.instrument = instrument

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        kinds = [_kind(point) for point in points]
        if any(kinds.count(kind) < 2 for kind in kinds):
            raise ValueError(
                f"the study needs at least two seeds of each combination of {GAIN} and {SHARE}, got {kinds}"
            )

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        groups: dict[tuple[float, float], list[FinishedRun]] = {}
        for run in runs:
            groups.setdefault(_kind(run.point), []).append(run)
        gains = {gain for gain, _ in groups}
        found: list[_Condition] = []
        for gain in sorted(gains, reverse=True):
            word = f", weights × {gain:g}" if len(gains) > 1 and gain != 1 else ""
            if not found:  # labels act later, and other gains only scale a network without biases
                start = next(members for kind, members in groups.items() if kind[0] == gain)
                found.append(self._condition("at initialisation", start, 0))
            for kind in sorted(k for k in groups if k[0] == gain):
                trained = "trained" if kind[1] == 0 else f"{_share(kind[1])} labels permuted"
                found.append(self._condition(f"{trained}{word}", groups[kind], -1))
        tests = len(found) * len(found[0].profiles)
        verdict = Section(
            "Verdict",
            findings=[
                *_oscillation(found, tests),
                *(_dimension(one) for one in found),
                *(_focusing(one) for one in found),
            ],
            panels=[_profiles_panel(found)],
        )
        return Conclusion([verdict, _orders(found)])

    def _condition(self, label: str, runs: Sequence[FinishedRun], look: int) -> _Condition:
        records = [run.record.instrument(self.instrument) for run in runs]
        names = [name for name in records[0] if records[0][name].values.ndim == 2]
        values = {
            name: np.stack([np.asarray(record[name].values[look]) for record in records]) for name in names
        }
        return _Condition(label, values["depth"][0], values, lengths(records[0]))


def _kind(point: Mapping[str, Any]) -> tuple[float, float]:
    return float(point.get(GAIN, 1.0)), float(point.get(SHARE, 0.0))


def _share(part: float) -> str:
    return "all" if part == 1 else f"{100 * part:.0f} % of the"


def _dimension(one: _Condition) -> Finding:
    mean, error = one.mean("levina_bickel")
    steps = np.diff(one.values["levina_bickel"], axis=1)
    top = int(mean.argmax())
    ends = [0, -1]
    shape = "with no trend common to all seeds"
    if (steps < 0).all():
        shape = "falling from every layer to the next in every seed"
    elif (mean[top] - mean[ends] > 3 * np.hypot(error[top], error[ends])).all():
        shape = (
            f"with a maximum of {with_error(mean[top], error[top])} at relative depth {one.depth[top]:.2f}"
        )
    elif abs(mean[-1] - mean[0]) > 3 * np.hypot(error[0], error[-1]):
        shape = "falling on the whole" if mean[-1] < mean[0] else "rising on the whole"
    return Finding(
        f"{one.label.capitalize()}: dimension (MLE) {with_error(mean[0], error[0])} in the first "
        f"hidden layer and {with_error(mean[-1], error[-1])} in the last, {shape}."
    )


def _focusing(one: _Condition) -> Finding:
    share = 100 * one.carried()
    error = share.std(ddof=1) / len(share) ** 0.5
    return Finding(
        f"{one.label.capitalize()}: the paths are carried by {with_error(share.mean(), error)} % of the "
        f"nodes of a layer (participation ratio over width)."
    )


def _significant(one: _Condition, k: int) -> int:
    """Seeds whose profile passes the permutation test."""
    return int((one.values["oscillation_p"][:, k] < LEVEL).sum())


def _oscillates(one: _Condition, k: int, tests: int) -> bool:
    """More seeds pass than noise explains, and their phase repeats."""
    seeds = len(one.values["staggered"])
    p = binomtest(_significant(one, k), seeds, LEVEL, alternative="greater").pvalue
    phase = phase_over_seeds(torch.from_numpy(one.values["signed_staggered"][:, k]))
    return p < LEVEL / tests and abs(phase.mean) > 3 * phase.standard_error


def _oscillation(found: Sequence[_Condition], tests: int) -> list[Finding]:
    cases = [(one, k, name) for one in found for k, name in enumerate(one.profiles)]
    positive = [(one, k, name) for one, k, name in cases if _oscillates(one, k, tests)]
    seeds = sum(len(one.values["staggered"]) for one, _, _ in cases)
    passed = sum(_significant(one, k) for one, k, _ in cases)
    expected = binomtest(passed, seeds, LEVEL, alternative="greater").pvalue
    count = (
        f"{passed} of {seeds} profiles have p < {LEVEL} against permuted layers, {LEVEL * seeds:.0f} are "
        f"expected of noise (p = {expected:.2g} for that many if all were independent)"
    )
    if not positive:
        return [
            Finding(
                f"No significant oscillation of period two from layer to layer in any condition: {count}."
            )
        ]
    told = "; ".join(f"{LABELS.get(name, name)}, {one.label}" for one, _, name in positive)
    return [Finding(f"Oscillation of period two beyond noise, with a phase that repeats: {told}. {count}.")]


def _orders(found: Sequence[_Condition]) -> Section:
    """Every order parameter with its null."""
    rows = []
    for one in found:
        for k, (name, size) in enumerate(one.profiles.items()):
            m, signed = one.values["staggered"][:, k], one.values["signed_staggered"][:, k]
            mean, quantile = null_staggered(size)
            phase = phase_over_seeds(torch.from_numpy(signed))
            rows.append(
                [
                    one.label,
                    LABELS.get(name, name),
                    f"{m.mean():.2f}",
                    f"{mean:.2f}, {quantile:.2f}",
                    f"{_significant(one, k)} of {len(m)}",
                    with_error(phase.mean, phase.standard_error, 2),
                    f"{phase.positive} of {phase.seeds}",
                ]
            )
    sizes = sorted({size for one in found for size in one.profiles.values()})
    floors = ", ".join(f"{p_floor(size):.2g} for {size} layers" for size in sizes)
    return Section(
        "Order parameters",
        "m = |Σ(-1)^l z_l|/Σ|z_l| of a profile without its linear trend, 1 for perfect period two. The "
        f"smallest p that the permutation test can give is {floors}. A smooth bend repeats between seeds as "
        "well: a phase counts only where m itself is beyond noise. Focusing leaves out the last hidden "
        "layer, which few outputs focus from the far side.",
        panels=[_orders_panel(found)],
        header=[
            "condition", "profile", "m", "of noise: mean, 95 %", "p < 0.05", "signed m", "positive",
        ],
        rows=rows,
    )  # fmt: skip


def _colour(found: Sequence[_Condition], one: _Condition) -> Any:
    trained = [c.label for c in found if not c.label.startswith("at init")]
    return COLOURS[trained.index(one.label) % len(COLOURS)] if one.label in trained else "0.6"


def _profiles_panel(found: Sequence[_Condition]) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True).ravel()
    shown = (
        ("levina_bickel", "dimension (MLE)"),
        ("two_nn", "dimension (TwoNN)"),
        ("path_effective_nodes", "effective nodes of the paths"),
        ("participation_ratio", "participation ratio"),
    )
    for axis, (name, label) in zip(axes, shown, strict=True):
        for k, one in enumerate(found):
            mean, error = one.mean(name)
            style = "--" if one.label.startswith("at init") else "-"
            axis.errorbar(
                one.depth, mean, error, fmt=f"o{style}", ms=3, lw=1.2, capsize=2, label=one.label,
                color=_colour(found, one) if style == "-" else str(0.3 + 0.35 * (k > 0)),
            )  # fmt: skip
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        _bare(axis)
    for axis in axes[2:]:
        axis.set_xlabel("relative depth")
    axes[1].legend(frameon=False, fontsize=8)
    return Panel(
        "Profiles over the hidden layers",
        figure,
        "Means over seeds with standard errors. Few effective nodes mean strong focusing; before the last "
        "hidden layer's few outputs the far side always looks focused.",
    )


def _orders_panel(found: Sequence[_Condition]) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    axis = figure.subplots()
    names = list(found[0].profiles)
    width = 0.8 / len(found)
    for c, one in enumerate(found):
        initial = one.label.startswith("at init")
        for k in range(len(names)):
            m = one.values["staggered"][:, k]
            place = k - 0.4 + width * (c + 0.5) + width * 0.5 * np.linspace(-0.5, 0.5, len(m))
            axis.plot(
                place, m, "o", ms=3.5, mfc="none" if initial else None,
                color=_colour(found, one), label=one.label if k == 0 else None,
            )  # fmt: skip
    for k, size in enumerate(found[0].profiles.values()):
        mean, quantile = null_staggered(size)
        axis.fill_between([k - 0.45, k + 0.45], 0, quantile, color="0.92", lw=0, zorder=0)
        axis.hlines(mean, k - 0.45, k + 0.45, color="0.5", ls=":", lw=1, label="_" if k else "mean of noise")
    axis.set_xticks(range(len(names)), [LABELS.get(name, name) for name in names])
    axis.set(ylabel="staggered order m", ylim=(0, 1.02))
    _bare(axis)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return Panel(
        "Oscillation against noise",
        figure,
        "Each dot is a network. Shaded: 95 % of what profiles of independent noise of that length give.",
    )


def _bare(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)

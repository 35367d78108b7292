"""Do entropy and trace of the kernel before the first step tell how well a network will generalise?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from observatory.numerics.statistics import Interval, bootstrap, correlation, ranks
from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.report.metrics import read_metrics
from observatory.studies.study import Conclusion, FinishedRun, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEED, SELECTION, DRAW = "seed_everything", "data.init_args.selection", "data.init_args.draw"
Varied = Literal["initial states", "random selections", "selections by novelty"]
VARIED: tuple[Varied, ...] = ("initial states", "random selections", "selections by novelty")
VARIABLES = {"entropy": "entropy S₀", "mean_trace": "mean trace Tr K₀/n"}
COLOURS = dict(zip(VARIED, ("tab:purple", "tab:blue", "tab:orange"), strict=True))
FEWEST = 5  # runs of a kind: a correlation of fewer means nothing


@dataclass(frozen=True)
class _Kind:
    """Runs that differ in one thing only, M of them."""

    varied: Varied
    first: dict[str, Tensor]  # collective variables before the first step, (M,)
    loss: Tensor  # lowest on the examples held out, (M,)

    def __len__(self) -> int:
        return len(self.loss)

    def pearson(self, variable: str, resamples: int) -> Interval:
        return self._correlation(variable, resamples, lambda v: v)

    def spearman(self, variable: str, resamples: int) -> Interval:
        return self._correlation(variable, resamples, ranks)

    def _correlation(self, variable: str, resamples: int, scale: Callable[[Tensor], Tensor]) -> Interval:
        pairs = torch.stack([self.first[variable], self.loss], -1)
        return _interval(pairs, lambda p: correlation(scale(p[..., 0]), scale(p[..., 1])), resamples)

    def chance(self, variable: str) -> float:
        """Probability that independent variables have a rank correlation as large as this in size."""
        from scipy.stats import spearmanr

        return float(spearmanr(self.first[variable], self.loss).pvalue)


class InitialStateAndGeneralisation(Study):
    """Entropy S₀ and trace Tr K₀ of the kernel at step 0, against the lowest loss on examples held out.

    Three kinds of runs, each differing in one thing: initial states on the same data, random selections of
    the training data for the same initial state, and selections by novelty. Pearson's and Spearman's
    correlations stand with 95 % bootstrap intervals over runs. (Tovey et al. 2023, arXiv:2305.00995.)

    Args:
        instrument: name of the one that recorded the kernel of the training data.
        loss: the metric whose lowest value counts.
        resamples: of each bootstrap.
    """

    title = "Initial state and generalisation"

    def __init__(self, instrument: str = "ntk", loss: str = "val/loss", resamples: int = 2000) -> None:
        self.instrument, self.loss, self.resamples = instrument, loss, resamples

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        groups = _groups(points)
        if few := {varied: len(groups.get(varied, [])) for varied in VARIED if _too_few(groups, varied)}:
            told = ", ".join(f"{count} {varied}" for varied, count in few.items())
            raise ValueError(
                f"the study needs at least {FEWEST} runs of each kind, got {told}; sweep {SEED} with "
                f"{SELECTION} and {DRAW} fixed, and {DRAW} for 'random' and 'novelty' with {SEED} fixed"
            )

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        groups = _groups([run.point for run in runs])
        kinds = [self._kind(varied, [runs[k] for k in groups[varied]]) for varied in VARIED]
        correlations = [_prediction(kind, name, self.resamples) for kind in kinds for name in VARIABLES]
        verdict = Section(
            "Verdict",
            findings=[*correlations, _by_luck(kinds), *_choice(kinds[1], kinds[2], self.resamples)],
            panels=[_scatter_panel(kinds), _correlations_panel(kinds, self.resamples)],
            header=["varied", "runs", "of the initial", "Pearson r", "Spearman ρ", "p"],
            rows=[_row(kind, name, self.resamples) for kind in kinds for name in VARIABLES],
        )
        state = Section(
            "The runs",
            "Mean and standard deviation over runs.",
            header=["varied", "runs", *VARIABLES.values(), "lowest loss held out (nat)"],
            rows=[[kind.varied, str(len(kind)), *_moments(kind)] for kind in kinds],
        )
        return Conclusion([verdict, state])

    def _kind(self, varied: Varied, runs: Sequence[FinishedRun]) -> _Kind:
        records = [run.record for run in runs]
        first = {
            name: torch.tensor(
                [float(record[f"{self.instrument}/{name}"].values[0]) for record in records],
                dtype=torch.float64,
            )
            for name in VARIABLES
        }
        loss = torch.tensor([self._lowest(run) for run in runs], dtype=torch.float64)
        return _Kind(varied, first, loss)

    def _lowest(self, run: FinishedRun) -> float:
        """The lowest value that the metric had in the run.

        Raises:
            ValueError: if it was never logged.
        """
        curves = read_metrics(run.folder)
        if self.loss not in curves:
            raise ValueError(
                f"run {run.name} logged no {self.loss!r} ({', '.join(curves)}): let the Trainer validate"
            )
        return min(curves[self.loss][1])


def _groups(points: Sequence[Mapping[str, Any]]) -> dict[Varied, list[int]]:
    """Which runs are of which kind; the first point may be both an initial state and a random selection."""
    if any(key not in point for point in points for key in (SEED, SELECTION, DRAW)):
        raise ValueError(f"the study compares initial states and data: sweep {SEED}, {SELECTION} and {DRAW}")
    seed, data = points[0][SEED], (points[0][SELECTION], points[0][DRAW])
    found: dict[Varied, list[int]] = {varied: [] for varied in VARIED}
    for k, point in enumerate(points):
        if (point[SELECTION], point[DRAW]) == data:
            found["initial states"].append(k)
        if point[SEED] == seed and point[SELECTION] == "random":
            found["random selections"].append(k)
        if point[SEED] == seed and point[SELECTION] == "novelty":
            found["selections by novelty"].append(k)
    if stray := set(range(len(points))) - {k for group in found.values() for k in group}:
        raise ValueError(
            f"run {min(stray)} differs from the first one both in {SEED} and in its data: vary one of them"
        )
    return found


def _too_few(groups: Mapping[Varied, Sequence[int]], varied: Varied) -> bool:
    return len(groups[varied]) < FEWEST


def _interval(samples: Tensor, statistic: Callable[[Tensor], Tensor], resamples: int) -> Interval:
    return bootstrap(samples, statistic, resamples=resamples, generator=torch.Generator().manual_seed(0))


def _excludes_zero(interval: Interval) -> bool:
    return bool(interval.low > 0) or bool(interval.high < 0)


def _prediction(kind: _Kind, variable: str, resamples: int) -> Finding:
    pearson, spearman = kind.pearson(variable, resamples), kind.spearman(variable, resamples)
    told = (
        f"r = {_told(pearson)}, rank correlation {_told(spearman)}, p = {kind.chance(variable):.2g}, "
        f"{len(kind)} runs"
    )
    name = VARIABLES[variable]
    if not (_excludes_zero(pearson) or _excludes_zero(spearman)):
        return Finding(
            f"Among {kind.varied} the {name} does not tell which run will generalise better ({told})."
        )
    if not (_excludes_zero(pearson) and _excludes_zero(spearman)):
        return Finding(f"Among {kind.varied} the {name} hardly tells which run generalises better ({told}).")
    sign = "higher" if float(spearman.estimate) > 0 else "lower"
    return Finding(f"Among {kind.varied} a larger {name} goes with a {sign} lowest loss ({told}).")


def _by_luck(kinds: Sequence[_Kind]) -> Finding:
    """Of many correlations looked for, one in twenty has p < 0.05 even if nothing is there."""
    p = [kind.chance(name) for kind in kinds for name in VARIABLES]
    beyond = sum(one < 0.05 / len(p) for one in p)
    return Finding(
        f"{len(p)} correlations were looked for; {sum(one < 0.05 for one in p)} have p < 0.05, where "
        f"{0.05 * len(p):.1f} are expected by luck alone, and {beyond} have p < 0.05/{len(p)} (Bonferroni).",
        "note",
    )


def _choice(random: _Kind, novelty: _Kind, resamples: int) -> list[Finding]:
    """What selecting by novelty changes; the selections are paired by nothing, and resampled apart."""
    found = []
    values = {name: (random.first[key], novelty.first[key]) for key, name in VARIABLES.items()}
    for name, (one, other) in (values | {"lowest loss": (random.loss, novelty.loss)}).items():
        ratio = _ratio_of_means(one, other, resamples)
        low, high = float(ratio.low), float(ratio.high)
        how = "raises" if low > 1 else "lowers" if high < 1 else "does not change"
        found.append(
            Finding(
                f"Choosing the data by novelty {how} the {name}: {_told(ratio)} times its mean at random."
            )
        )
    return found


def _ratio_of_means(one: Tensor, other: Tensor, resamples: int) -> Interval:
    """mean(other)/mean(one), each resampled on its own."""
    means = [_resampled_means(values, resamples, seed) for seed, values in enumerate((one, other))]
    ratio = means[1] / means[0]
    low, high = torch.quantile(ratio, ratio.new_tensor([0.025, 0.975]))
    return Interval(other.mean() / one.mean(), low, high, ratio.std(), 0.95)


def _resampled_means(values: Tensor, resamples: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return values[torch.randint(len(values), (resamples, len(values)), generator=generator)].mean(1)


def _told(interval: Interval) -> str:
    estimate, low, high = (f"{float(x):.2f}" for x in (interval.estimate, interval.low, interval.high))
    return f"{estimate} (95 % {low} to {high})"


def _row(kind: _Kind, variable: str, resamples: int) -> list[str]:
    pearson, spearman = kind.pearson(variable, resamples), kind.spearman(variable, resamples)
    return [
        kind.varied, str(len(kind)), VARIABLES[variable], _told(pearson), _told(spearman),
        f"{kind.chance(variable):.2g}",
    ]  # fmt: skip


def _moments(kind: _Kind) -> list[str]:
    return [f"{v.mean():.3f} ± {v.std():.3f}" for v in (*kind.first.values(), kind.loss)]


def _scatter_panel(kinds: Sequence[_Kind]) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 5.2), layout="constrained")
    rows = figure.subplots(2, 2, sharey="row", sharex="col")
    for axes, shown in zip(rows, (kinds[:1], kinds[1:]), strict=True):
        for axis, name in zip(axes, VARIABLES, strict=True):
            for kind in shown:
                axis.plot(
                    kind.first[name], kind.loss, "o", ms=4.5, mew=0, alpha=0.75, color=COLOURS[kind.varied]
                )
            _plain(axis)
        axes[0].set_ylabel("lowest loss held out (nat)")
    for axis, label in zip(rows[1], VARIABLES.values(), strict=True):
        axis.set_xlabel(f"initial {label}")
    figure.legend(
        handles=[_dot(kind.varied) for kind in kinds], loc="outside upper center", ncols=3, frameon=False
    )
    return Panel(
        "Before the first step, and after",
        figure,
        "Each dot is a run. Top: networks that start elsewhere and learn from the same examples. Bottom: "
        "one network that learns from other examples.",
    )


def _dot(varied: Varied) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], ls="", marker="o", color=COLOURS[varied], label=varied)


def _correlations_panel(kinds: Sequence[_Kind], resamples: int) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.0), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True, sharex=True)
    for axis, name in zip(axes, VARIABLES, strict=True):
        for k, kind in enumerate(kinds):
            for shift, marker, interval in (
                (-0.13, "o", kind.pearson(name, resamples)),
                (0.13, "D", kind.spearman(name, resamples)),
            ):
                estimate, low, high = (float(x) for x in (interval.estimate, interval.low, interval.high))
                axis.plot([low, high], [k + shift] * 2, "-", lw=1.5, color=COLOURS[kind.varied])
                axis.plot(estimate, k + shift, marker, ms=5, color=COLOURS[kind.varied])
        axis.axvline(0, color="0.5", lw=1, ls=":")
        axis.set(xlabel=f"correlation of the loss with {VARIABLES[name]}", xlim=(-1, 1))
        axis.set_xticks([-1, -0.5, 0, 0.5, 1])
        axis.set_yticks(range(len(kinds)), [kind.varied for kind in kinds])
        _plain(axis)
    axes[0].invert_yaxis()
    return Panel(
        "Correlations",
        figure,
        "With the lowest loss held out, and 95 % bootstrap intervals: Pearson's r (circles) and Spearman's ρ "
        "(diamonds). An interval that holds zero is a null result.",
    )


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)

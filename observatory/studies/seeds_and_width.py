"""Does the initial state of a network tell how well it will generalise, and what does width change?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from observatory.numerics.statistics import Interval, bootstrap, correlation, fit_line, ranks
from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.studies.study import Conclusion, FinishedRun, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTHS = "model.init_args.network.init_args.widths"
FEWEST = 5  # seeds: of fewer, most resamples have equal ranks, and intervals are too short
FIRST, LAST, LOSS = "#4c72b0", "#c44e52", "#222222"


@dataclass(frozen=True)
class _Grid:
    """What all runs of one width have in common stands in a column; each tensor is (seeds, widths)."""

    width: Tensor  # (widths,), of the hidden layers
    loss: Tensor  # on the test split, at the end
    accuracy: Tensor  # on the test split, at the end
    first: dict[str, Tensor]  # collective variables before the first step
    last: dict[str, Tensor]  # the same after the last one

    def exponent(self, values: Tensor, draws: int) -> Interval:
        """α of values ∝ width^α, from the mean of the logarithms at each width; resamples seeds."""
        x = self.width.log()
        return _interval(values.log(), lambda v: fit_line(x, v.mean(-2)).slope, draws)

    def within(self, values: Tensor, draws: int) -> Interval:
        """Rank correlation of values with the test loss between seeds of equal width, pooled over widths."""
        return _interval(torch.stack([values, self.loss], -1), _rank_correlation, draws)


class SeedsAndWidth(Study):
    """Collective variables of the tangent kernel before and after training, beside the test loss.

    Networks of several widths, several seeds each. Exponents are slopes of mean logarithms; correlations
    compare seeds of equal width, so that width itself cannot make them; intervals are 95 % bootstrap
    intervals over seeds. (Entropy and trace of the initial kernel: Tovey et al. 2023, arXiv:2305.00995;
    1/width of its relative change: Jacot et al. 2018, arXiv:1806.07572.)

    Args:
        widths: the swept key that holds a width, or the list of a network's widths from inputs to outputs.
        instrument: name of the one that recorded the kernel.
        resamples: of each bootstrap.
    """

    title = "Seeds and width: what the initial state says of the end"

    def __init__(self, widths: str = WIDTHS, instrument: str = "ntk", resamples: int = 2000) -> None:
        self.widths, self.instrument, self.resamples = widths, instrument, resamples

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        if any(self.widths not in point for point in points):
            raise ValueError(f"the study compares widths: sweep {self.widths}")
        counts = {len(group) for group in self._by_width(points).values()}
        if len(self._by_width(points)) < 2 or len(counts) > 1 or min(counts) < 2:
            raise ValueError(
                f"the study needs at least two widths of equally many seeds, at least two; got {len(points)} "
                f"runs of the widths {', '.join(map(str, self._by_width(points)))}"
            )

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        grid = self._grid(runs)
        verdict = Section("Verdict", findings=self._verdict(grid), panels=[_loss_panel(grid, self.resamples)])
        state = Section(
            "The state, before and after",
            "Means over seeds with 95 % intervals. The kernel is that of the probe, contracted over outputs.",
            panels=[_state_panel(grid, self.resamples), _scatter_panel(grid)],
            header=[
                "width",
                "seeds",
                "entropy S₀",
                "entropy S",
                "trace T₀",
                "distance",
                "test loss",
                "accuracy",
            ],
            rows=_rows(grid, self.resamples),
        )
        return Conclusion([verdict, state])

    def _by_width(self, points: Sequence[Mapping[str, Any]]) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = {}
        for k, point in enumerate(points):
            groups.setdefault(_width(point[self.widths]), []).append(k)
        return dict(sorted(groups.items()))

    def _grid(self, runs: Sequence[FinishedRun]) -> _Grid:
        groups = self._by_width([run.point for run in runs])

        def gather(value: Callable[[FinishedRun], float]) -> Tensor:
            return torch.tensor(
                [[value(runs[k]) for k in group] for group in groups.values()], dtype=torch.float64
            ).T

        def look(name: str, index: int) -> Tensor:
            return gather(lambda run: float(run.record[f"{self.instrument}/{name}"].values[index]))

        return _Grid(
            torch.tensor(list(groups), dtype=torch.float64),
            gather(lambda run: run.metric("test/loss")),
            gather(lambda run: run.metric("test/accuracy")),
            {name: look(name, 0) for name in ("entropy", "mean_trace")},
            {name: look(name, -1) for name in ("entropy", "mean_trace", "distance")},
        )

    def _verdict(self, grid: _Grid) -> list[Finding]:
        n = self.resamples
        seeds, low, high = len(grid.loss), int(grid.width[0]), int(grid.width[-1])
        found = [
            _power("The test loss", grid.exponent(grid.loss, n), f"from width {low} to {high}"),
            _power("The trace of the initial kernel", grid.exponent(grid.first["mean_trace"], n)),
            _power(
                "The distance that training moves the kernel's direction",
                grid.exponent(grid.last["distance"], n),
            ),
            _change(grid, n),
        ]
        names = {"entropy": "initial entropy", "mean_trace": "initial trace"}
        if seeds < FEWEST:
            found.append(
                Finding(
                    f"{seeds} seeds of each width are too few to tell whether the initial state says which "
                    f"seed generalises better; {FEWEST} are needed.",
                    "warning",
                )
            )
        else:
            found += [_prediction(name, grid.within(grid.first[key], n)) for key, name in names.items()]
        return [*found, Finding(f"{seeds} seeds at each of {len(grid.width)} widths.", "note")]


def _width(value: Any) -> int:
    """A width, or the widest hidden layer of a list from inputs to outputs."""
    return int(max(value[1:-1])) if isinstance(value, list) else int(value)


def _interval(samples: Tensor, statistic: Callable[[Tensor], Tensor], draws: int) -> Interval:
    return bootstrap(samples, statistic, resamples=draws, generator=torch.Generator().manual_seed(0))


def _mean(values: Tensor, draws: int) -> Interval:
    return _interval(values, lambda v: v.mean(-2), draws)


def _rank_correlation(pairs: Tensor) -> Tensor:
    """Spearman's ρ of (..., seeds, widths, 2), ranks taken within each width and pooled."""
    a, b = (ranks(side.mT) for side in pairs.unbind(-1))  # (..., widths, seeds)
    a, b = (side - side.mean(-1, keepdim=True) for side in (a, b))
    return correlation(a.flatten(-2), b.flatten(-2))


def _told(interval: Interval, digits: int = 2) -> str:
    estimate, low, high = (f"{float(x):.{digits}f}" for x in (interval.estimate, interval.low, interval.high))
    return f"{estimate} (95 % {low} to {high})"


def _power(what: str, exponent: Interval, where: str = "") -> Finding:
    low, high = float(exponent.low), float(exponent.high)
    how = "falls with width" if high < 0 else "grows with width" if low > 0 else "does not depend on width"
    return Finding(f"{what} {how}{', ' if where else ''}{where}: exponent {_told(exponent)}.")


def _change(grid: _Grid, draws: int) -> Finding:
    change = _interval(grid.last["entropy"] - grid.first["entropy"], lambda v: v.mean((-2, -1)), draws)
    if float(change.low) > 0 or float(change.high) < 0:
        how = "raises" if float(change.low) > 0 else "lowers"
        return Finding(f"Training {how} the kernel's entropy on average: ΔS = {_told(change)} nat.")
    return Finding(f"Training does not change the kernel's entropy on average: ΔS = {_told(change)} nat.")


def _prediction(name: str, correlation: Interval) -> Finding:
    told = f"rank correlation with the test loss {_told(correlation)}"
    if float(correlation.low) > 0 or float(correlation.high) < 0:
        sign = "higher" if float(correlation.estimate) > 0 else "lower"
        return Finding(f"At equal width a seed of larger {name} has a {sign} test loss: {told}.")
    return Finding(f"At equal width the {name} does not tell which seed generalises better: {told}.")


def _rows(grid: _Grid, draws: int) -> list[list[str]]:
    columns = [
        (grid.first["entropy"], 2),
        (grid.last["entropy"], 2),
        (grid.first["mean_trace"], 1),
        (grid.last["distance"], 3),
        (grid.loss, 4),
        (grid.accuracy, 4),
    ]
    means = [(_mean(values, draws), digits) for values, digits in columns]
    return [
        [str(int(width)), str(len(grid.loss))]
        + [f"{m.estimate[k]:.{d}f} [{m.low[k]:.{d}f}, {m.high[k]:.{d}f}]" for m, d in means]
        for k, width in enumerate(grid.width.tolist())
    ]


def _axis_of_widths(axis: Axes, grid: _Grid, label: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(grid.width.tolist(), [str(int(w)) for w in grid.width.tolist()])
    axis.set(xlabel="width", ylabel=label)
    axis.spines[["top", "right"]].set_visible(False)


def _means(axis: Axes, grid: _Grid, values: Tensor, draws: int, colour: str, label: str = "") -> None:
    """Every run as a dot, the mean of each width with its interval."""
    jitter = 2 ** (0.16 * (torch.arange(len(values)) / max(len(values) - 1, 1) - 0.5))
    axis.plot(grid.width * jitter[:, None], values, "o", ms=3, mew=0, alpha=0.35, color=colour)
    mean = _mean(values, draws)
    bars = torch.stack([mean.estimate - mean.low, mean.high - mean.estimate]).clamp_min(0)
    axis.errorbar(
        grid.width, mean.estimate, bars, fmt="o-", ms=5, lw=1.5, capsize=3, color=colour, label=label
    )


def _loss_panel(grid: _Grid, draws: int) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    loss, distance = figure.subplots(1, 2)
    _means(loss, grid, grid.loss, draws, LOSS)
    loss.set_yscale("log")
    _axis_of_widths(loss, grid, "test loss (nat)")
    _means(distance, grid, grid.last["distance"], draws, LAST)
    distance.set_yscale("log")
    _axis_of_widths(distance, grid, "distance 1 - cos(K, K₀)")
    return Panel(
        "Wider networks",
        figure,
        "Left: the test loss after training. Right: how far training has turned the tangent kernel away from "
        "its initial direction. Small dots are runs, large ones means over seeds with 95 % intervals.",
    )


def _state_panel(grid: _Grid, draws: int) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    entropy, trace = figure.subplots(1, 2)
    for axis, name, label in (
        (entropy, "entropy", "kernel entropy S (nat)"),
        (trace, "mean_trace", "mean trace Tr K / n"),
    ):
        _means(axis, grid, grid.first[name], draws, FIRST, "before training")
        _means(axis, grid, grid.last[name], draws, LAST, "after training")
        _axis_of_widths(axis, grid, label)
    trace.set_yscale("log")
    entropy.legend(frameon=False)
    return Panel(
        "Collective variables",
        figure,
        "Entropy and mean trace of the tangent kernel on the probe, before and after training.",
    )


def _scatter_panel(grid: _Grid) -> Panel:
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    colours = matplotlib.colormaps["viridis"](torch.linspace(0, 0.9, len(grid.width)).numpy())
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name, label in zip(
        axes, ("entropy", "mean_trace"), ("initial entropy S₀ (nat)", "initial mean trace"), strict=True
    ):
        for k, (width, colour) in enumerate(zip(grid.width.tolist(), colours, strict=True)):
            axis.plot(grid.first[name][:, k], grid.loss[:, k], "o", ms=5, color=colour, label=f"{int(width)}")
        axis.set(xlabel=label, yscale="log")
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_xscale("log")
    axes[0].set_ylabel("test loss (nat)")
    axes[1].legend(frameon=False, title="width")
    return Panel(
        "Does the initial state tell the end?",
        figure,
        "Each dot is a run. Between colours the width acts; within one colour only the seed differs.",
    )

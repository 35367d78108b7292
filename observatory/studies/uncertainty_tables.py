"""Error bars of the last layer on regression tables: where they are worth something, and where nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.studies import published_tables
from observatory.studies.study import Conclusion, FinishedRun, Study
from observatory.uncertainty.figures import normal_panel, parity_panel
from observatory.uncertainty.judging import load_judged

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEY = "data.init_args.name"
COLOURS = {"PBP": "#8c8c8c", "DE": "#dd8452", "MCD": "#55a868"}
OURS, CONSTANT = "#4c72b0", "#c44e52"
LIKELIHOOD = {
    "RMSE": ("rmse", 3), "NLL, one σ": ("constant/nll", 3), "NLL, σ(x)": ("nll", 3),
    "NLL, ς² profiled": ("profiled/nll", 3), "NLL, + σ_n": ("additive/nll", 3),
}  # fmt: skip
OTHERS = {
    "CRPS, one σ": ("constant/crps", 4), "CRPS, σ(x)": ("crps", 4), "90 % interval": ("coverage_90", 3),
    "mean z²": ("mean_z2", 2), "ρ(|r|, σ)": ("spearman", 2), "its ceiling": ("spearman_ceiling", 2),
}  # fmt: skip
TITLE = "Last-layer error bars on tables"
ROWS = "observatory/uncertainty/test_rows.npz"  # below the folder of a run


@dataclass(frozen=True)
class _Table:
    """All splits of one table; metrics are (splits,)."""

    name: str
    metrics: dict[str, Tensor]
    residual: Tensor  # test rows of all splits together, (n,)
    std: Tensor  # (n,)

    def mean(self, name: str) -> float:
        return float(self.metrics[name].mean())

    def error(self, name: str) -> float:
        """Standard error over splits; NaN for one split."""
        return _error(self.metrics[name])

    def gain(self) -> tuple[float, float]:
        """By how much σ(x) lowers the negative log-likelihood of one σ; its standard error over splits."""
        difference = self.metrics["constant/nll"] - self.metrics["nll"]
        return float(difference.mean()), _error(difference)


class UncertaintyTables(Study):
    """Test log-likelihood, ranked probability score and coverage of last-layer error bars, table by table.

    Each is compared with one error bar for all inputs, split by split, and stands beside published figures.
    Splits share training rows: standard errors over them are not those of independent samples. (Bigi et al.
    2024, doi:10.1088/2632-2153/ad805f.)

    Args:
        name: the swept key that holds the name of the table.
    """

    title = TITLE

    def __init__(self, name: str = KEY) -> None:
        self.name = name

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        if any(self.name not in point for point in points):
            raise ValueError(f"the study compares tables: sweep {self.name}")

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        groups: dict[str, list[FinishedRun]] = {}
        for run in runs:
            groups.setdefault(str(run.point[self.name]), []).append(run)
        tables = [_gather(name, group) for name, group in groups.items()]
        verdict = Section(
            "Verdict", findings=[*_verdict(tables), *_published(tables)], panels=[_likelihood_panel(tables)]
        )
        scores = [
            _table(tables, "Log-likelihood", LIKELIHOOD),
            *_beside(tables),
            _table(tables, "Other scores", OTHERS),
        ]
        return Conclusion([verdict, *scores, _figures(tables)])


def _error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _gather(name: str, runs: Sequence[FinishedRun]) -> _Table:
    judged = [load_judged(run.folder / ROWS) for run in runs]
    metrics = {key: torch.cat([scores[key] for scores, _ in judged]) for key in judged[0][0]}
    residual, std = (
        torch.cat([rows[key].double().flatten() for _, rows in judged]) for key in ("residual", "std")
    )
    return _Table(name, metrics, residual, std)


def _verdict(tables: Sequence[_Table]) -> list[Finding]:
    """Wins and losses against one error bar; a difference counts beyond two standard errors."""
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "as good": []}
    for table in tables:
        gain, error = table.gain()
        kind = "as good" if not abs(gain) > 2 * error else "better" if gain > 0 else "worse"
        kinds[kind].append(f"{table.name} ({gain:+.3f} ± {error:.3f} nat)")
    told = {
        "better": "σ(x) of the last layer beats one error bar for all inputs on",
        "worse": "One error bar is better than σ(x) on",
        "as good": "The two cannot be told apart on",
    }
    found = [Finding(f"{told[kind]} {', '.join(names)}.") for kind, names in kinds.items() if names]
    repaired = ", ".join(
        f"{t.mean('constant/nll') - t.mean('additive/nll'):+.3f} on {t.name}" for t in tables
    )
    return [*found, Finding(f"With σ² = α²s² + σ_n² the gain over one error bar is {repaired}.")]


def _published(tables: Sequence[_Table]) -> list[Finding]:
    found = []
    for method, source in published_tables.METHODS.items():
        lower = {
            t.name: published_tables.NLL[t.name][method].value - t.mean("nll")
            for t in tables
            if t.name in published_tables.NLL
        }
        if lower:
            wins = [name for name, gain in lower.items() if gain > 0]
            losses = [name for name, gain in lower.items() if gain <= 0]
            found.append(
                Finding(
                    f"Against {method} ({source}) the log-likelihood is better on "
                    f"{', '.join(wins) or 'no table'} and worse on {', '.join(losses) or 'no table'}."
                )
            )
    return found


def _pm(table: _Table, name: str, digits: int = 3) -> str:
    error = table.error(name)
    tail = "" if math.isnan(error) else f" ± {error:.{digits}f}"
    return f"{table.mean(name):.{digits}f}{tail}"


def _table(tables: Sequence[_Table], title: str, columns: Mapping[str, tuple[str, int]]) -> Section:
    rows = [
        [t.name, str(len(t.metrics["nll"])), *(_pm(t, key, digits) for key, digits in columns.values())]
        for t in tables
    ]
    text = "Test rows, in the target's own units and nat; mean ± standard error over n splits."
    return Section(title, text, header=["table", "n", *columns], rows=rows)


def _beside(tables: Sequence[_Table]) -> list[Section]:
    known = [t for t in tables if t.name in published_tables.NLL]
    if not known:
        return []
    sections = []
    for kind, ours, theirs in (("NLL", "nll", published_tables.NLL), ("RMSE", "rmse", published_tables.RMSE)):
        rows = [
            [t.name, _pm(t, ours), *(f"{p.value:g} ± {p.error:g}" for p in theirs[t.name].values())]
            for t in known
        ]
        header = ["table", "here", *published_tables.METHODS]
        text = "; ".join(f"{method}: {source}" for method, source in published_tables.METHODS.items())
        sections.append(Section(f"{kind} beside published figures", text, header=header, rows=rows))
    return sections


def _likelihood_panel(tables: Sequence[_Table]) -> Panel:
    """Gain in log-likelihood over one error bar, of σ(x) and of the published methods."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 0.55 * len(tables) + 1.8), layout="constrained")
    axis = figure.subplots()
    for k, table in enumerate(tables):
        gain, error = table.gain()
        bar = 0.0 if math.isnan(error) else 2 * error
        first = k == 0
        axis.errorbar(
            gain, k, xerr=bar, fmt="o", color=OURS, capsize=3, label="σ(x), last layer" if first else ""
        )
        with_noise = table.mean("constant/nll") - table.mean("additive/nll")
        axis.plot(with_noise, k, "D", ms=4, mfc="none", color=OURS, label="with σ_n" if first else "")
        _published_points(axis, table, k)
    axis.axvline(0, color=CONSTANT, lw=1)
    axis.set_yticks(range(len(tables)), [t.name for t in tables])
    axis.invert_yaxis()
    axis.set_xlabel("gain in log-likelihood per row over one error bar for all inputs (nat)")
    if max(abs(limit) for limit in axis.get_xlim()) > 1:
        axis.set_xscale("symlog", linthresh=0.1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Panel(
        "Log-likelihood, table by table",
        figure,
        "Right of the red line the error bars beat one error bar of the same network (mean and two standard "
        "errors over splits). Other networks have other errors too: published methods stand where their own "
        "log-likelihood is.",
    )


def _published_points(axis: Axes, table: _Table, k: int) -> None:
    for method, published in published_tables.NLL.get(table.name, {}).items():
        known = method in axis.get_legend_handles_labels()[1]
        axis.plot(
            table.mean("constant/nll") - published.value,
            k + 0.22,
            "|",
            ms=9,
            mew=2,
            color=COLOURS[method],
            label="" if known else method,
        )


def _figures(tables: Sequence[_Table]) -> Section:
    panels = []
    for table in tables:
        panels.append(parity_panel(table.residual, table.std, f"{table.name}: errors against error bars"))
        panels.append(normal_panel(table.residual / table.std, f"{table.name}: standardised errors"))
    return Section("Calibration", "Test rows of all splits together.", panels=panels)

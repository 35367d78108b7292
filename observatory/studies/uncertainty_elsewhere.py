"""Classifiers shown inputs of another kind: which score notices, and what averaging does to probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.studies.study import Conclusion, FinishedRun, Study
from observatory.uncertainty.figures import scores_panel
from observatory.uncertainty.judging import load_judged

ROWS = "observatory/uncertainty/test_rows.npz"  # below the folder of a run
HOME = "data.class_path"
AWAY = "observe.tested.init_args.elsewhere.class_path"
SCORES = {
    "max_softmax": "largest probability",
    "energy": "energy -ln Σ exp z",
    "raw_variance": "s² of the last layer",
    "max_averaged": "largest averaged probability",
    "entropy": "entropy of averaged probabilities",
}


@dataclass(frozen=True)
class _Pair:
    """All seeds of one pair of data sets; metrics are (seeds,)."""

    name: str
    metrics: dict[str, Tensor]
    rows: Mapping[str, Tensor]  # scores of the first seed, here_... and there_...

    def told(self, name: str, digits: int = 4) -> str:
        values = self.metrics[name]
        tail = f" ± {_error(values):.{digits}f}" if len(values) > 1 else ""
        return f"{float(values.mean()):.{digits}f}{tail}"


class UncertaintyElsewhere(Study):
    """Log loss, calibration and detection of foreign inputs, for pairs of data sets and several seeds.

    The network itself and one temperature for all inputs stand beside probabilities averaged over the last
    layer's Gaussian logits. (Bigi et al. 2024, doi:10.1088/2632-2153/ad805f.)

    Args:
        home: the swept key that holds the data set of the training.
        away: the swept key that holds the other one.
    """

    title = "At home and elsewhere: what the last layer notices"

    def __init__(self, home: str = HOME, away: str = AWAY) -> None:
        self.home, self.away = home, away

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        if any(self.home not in point or self.away not in point for point in points):
            raise ValueError(f"the study compares data sets: sweep {self.home} and {self.away}")

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        groups: dict[str, list[FinishedRun]] = {}
        for run in runs:
            names = [str(run.point[key]).rpartition(".")[2] for key in (self.home, self.away)]
            groups.setdefault(" → ".join(names), []).append(run)
        pairs = [_gather(name, group) for name, group in groups.items()]
        findings = [finding for pair in pairs for finding in _verdict(pair)]
        return Conclusion(
            [
                Section("Verdict", findings=findings, panels=[_scores_panel(pairs)]),
                *map(_probabilities, pairs),
                _detection(pairs),
                Section("Scores", "Test images, first seed.", panels=_histograms(pairs)),
            ]
        )


def _error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _gather(name: str, runs: Sequence[FinishedRun]) -> _Pair:
    judged = [load_judged(run.folder / ROWS) for run in runs]
    metrics = {key: torch.cat([scores[key] for scores, _ in judged]) for key in judged[0][0]}
    return _Pair(name, metrics, {key: values[0] for key, values in judged[0][1].items()})


def _verdict(pair: _Pair) -> list[Finding]:
    averaged, scaled, plain = (
        pair.metrics[f"{kind}nll"] for kind in ("", "temperature/", "plain/")
    )  # each (seeds,)
    better = int(((averaged < scaled) & (scaled < plain)).sum())
    means = {label: float(pair.metrics[f"ood/{key}"].mean()) for key, label in SCORES.items()}
    best = max(means, key=lambda label: means[label])
    losses = ", ".join(
        f"{float(values.mean()):.4f} {how}"
        for values, how in ((averaged, "averaged"), (scaled, "with one temperature"), (plain, "plain"))
    )
    own = "" if best == SCORES["raw_variance"] else f"s² has {means[SCORES['raw_variance']]:.3f}, "
    errors = [float(pair.metrics[key].mean()) for key in ("plain/error_auroc", "raw_error_auroc")]
    return [
        Finding(f"{pair.name}: log loss {losses}; in this order in {better} of {len(plain)} seeds."),
        Finding(
            f"{pair.name}: images from elsewhere are told apart best by the {best} (AUROC "
            f"{means[best]:.3f}); {own}the largest probability of the network itself has "
            f"{means[SCORES['max_softmax']]:.3f}."
        ),
        Finding(
            f"{pair.name}: errors at home are told apart by the largest probability (AUROC {errors[0]:.3f}), "
            f"not by s² ({errors[1]:.3f})."
        ),
    ]


def _probabilities(pair: _Pair) -> Section:
    columns = ("accuracy", "nll", "brier", "ece", "adaptive_ece")
    kinds = {"plain/": "plain", "temperature/": "one temperature", "": "averaged"}
    rows = [[label, *(pair.told(kind + column) for column in columns)] for kind, label in kinds.items()]
    header = ["probabilities", "accuracy", "log loss (nat)", "Brier", "ECE", "adaptive ECE"]
    title = f"Probabilities at home, {pair.name}"
    return Section(title, "Mean ± standard error over seeds.", header=header, rows=rows)


def _detection(pairs: Sequence[_Pair]) -> Section:
    rows = [[label, *(pair.told(f"ood/{key}", 3) for pair in pairs)] for key, label in SCORES.items()]
    text = "Area under the ROC curve, 0.5 for chance; mean ± standard error over seeds."
    return Section("Elsewhere", text, header=["score", *(pair.name for pair in pairs)], rows=rows)


def _scores_panel(pairs: Sequence[_Pair]) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(pairs), sharey=True))
    for axis, pair in zip(axes, pairs, strict=True):
        for k, key in enumerate(SCORES):
            values = pair.metrics[f"ood/{key}"]
            colour = "#4c72b0" if key in ("raw_variance", "max_averaged", "entropy") else "0.55"
            axis.plot(values, [k] * len(values), "o", ms=5, alpha=0.6, mew=0, color=colour)
            axis.plot([float(values.mean())], [k], "|", ms=16, mew=2, color=colour)
        axis.axvline(0.5, color="0.7", lw=0.8, ls=":")
        axis.set_yticks(range(len(SCORES)), list(SCORES.values()))
        axis.set(title=pair.name, xlabel="AUROC", xlim=(0.45, 1.0))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    return Panel(
        "Who notices?",
        figure,
        "How well each score tells test images at home from images elsewhere. Dots: seeds; bars: means; "
        "blue: scores of the last layer's Gram matrix, grey: of the network itself.",
    )


def _histograms(pairs: Sequence[_Pair]) -> list[Panel]:
    return [
        scores_panel(
            {
                f"log₁₀ {SCORES['raw_variance']}": _both(pair, "raw_variance", torch.log10),
                SCORES["entropy"] + " (nat)": _both(pair, "entropy"),
            },
            pair.name,
        )
        for pair in pairs
    ]


def _both(pair: _Pair, key: str, shown: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[Tensor, Tensor]:
    return shown(pair.rows[f"here_{key}"]), shown(pair.rows[f"there_{key}"])

"""A finished network, equipped and judged on data that it has never seen."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from observatory.looking.ranks import all_gather_rows
from observatory.uncertainty.classification_metrics import both_classes
from observatory.uncertainty.classifier import LastLayerClassifier
from observatory.uncertainty.gp import LastLayerGP


@dataclass(frozen=True)
class Judged:
    """Scores, and the rows that they were made of."""

    scores: dict[str, float]
    rows: dict[
        str, Tensor
    ]  # regression: residual, std, raw; classes: the scores of `LastLayerClassifier.scores`


def save_judged(judged: Sequence[Judged], path: Path) -> None:
    """Write the scores (networks,) as "score/<name>" and the rows (networks, n, ...) as .npz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"score/{name}": np.array([one.scores[name] for one in judged]) for name in judged[0].scores}
    arrays |= {name: torch.stack([one.rows[name].cpu() for one in judged]).numpy() for name in judged[0].rows}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_judged(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores (networks,) and rows (networks, n, ...) by name."""
    with np.load(path) as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored}
    scores = {key.removeprefix("score/"): v for key, v in arrays.items() if key.startswith("score/")}
    return scores, {key: v for key, v in arrays.items() if not key.startswith("score/")}


def judge_numbers(gp: LastLayerGP, train: Any, val: Any, test: Any, *, unit: float = 1.0) -> Judged:
    """Fit, calibrate with the regulariser asked for, and score a regression.

    Beside it stand the constant σ ("constant/..."), σ² = α² s² + σ_n² ("additive/..."), and the ς² of the
    best validation likelihood ("profiled/nll").

    Args:
        gp: not fitted yet.
        train, val, test: loaders.
        unit: size of one unit of the network's target.
    """
    gp.fit(train)
    validation, (residuals, features) = gp.residuals(val), gp.residuals(test)
    gp.calibrate_on(*validation)
    scores = gp.score_on(residuals, features, unit=unit)
    std = gp.deviations(features)
    rows = {"residual": residuals * unit, "std": std * unit, "raw": gp.fitted.exact(features)}
    asked, noise = gp.requested_reg, gp.noise
    gp.noise = "additive"
    gp.calibrate_on(*validation)
    additive = gp.score_on(residuals, features, unit=unit)
    gp.noise, gp.requested_reg = noise, "profile"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ς² is chosen by")  # that is what is looked at here
        gp.calibrate_on(*validation)
    profiled = gp.score_on(residuals, features, unit=unit)
    gp.requested_reg = asked
    scores |= {f"additive/{name}": additive[name] for name in ("nll", "crps", "mean_z2")}
    scores |= {
        "profiled/nll": profiled["nll"],
        "effective_dimension": float(gp.fitted.spectrum.effective_dimension),
    }
    return Judged(scores, rows)


def judge_classes(
    classifier: LastLayerClassifier, train: Any, val: Any, test: Any, elsewhere: Any = None
) -> Judged:
    """Fit, calibrate and score a classifier."""
    classifier.fit(train).calibrate(val)
    logits, variance, targets = classifier.collect(test)
    there = None
    rows = {f"here_{name}": v for name, v in classifier.scores(logits, variance).items()}
    rows["here_right"] = both_classes(logits).argmax(1) == targets
    if elsewhere is not None:
        there = tuple(map(all_gather_rows, classifier.own_outputs(elsewhere)))
        rows |= {f"there_{name}": v for name, v in classifier.scores(*there).items()}
    scores = classifier.score_on(logits, variance, targets, elsewhere=there)
    scores["alpha_squared"] = float(classifier.scale)
    return Judged(scores, {name: torch.as_tensor(v) for name, v in rows.items()})

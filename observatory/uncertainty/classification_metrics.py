"""How good are class probabilities?"""

from __future__ import annotations

import torch
from torch import Tensor

from observatory.uncertainty.averaging import log_loss
from observatory.uncertainty.ranking import auroc


def both_classes(probabilities: Tensor) -> Tensor:
    """(n, K) of all classes; a single column is the probability of class 1."""
    return probabilities if probabilities.shape[1] > 1 else torch.cat([1 - probabilities, probabilities], 1)


def brier_score(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Σ_k (p_k - 1{k = y})² of each row, (n,)."""
    p = both_classes(probabilities)
    return (p - torch.nn.functional.one_hot(targets.long(), p.shape[1]).to(p)).square().sum(1)


def calibration_error(
    probabilities: Tensor, targets: Tensor, bins: int = 15, *, adaptive: bool = False
) -> Tensor:
    """Σ_b (n_b/n)|accuracy_b - confidence_b| over bins of the largest probability.

    Args:
        probabilities: (n, K).
        targets: (n,) integer classes.
        bins: of equal width, (a, b].
        adaptive: of equal count instead.
    """
    confidence, predicted = both_classes(probabilities).double().max(1)
    right = (predicted == targets).double()
    n = len(confidence)
    if adaptive:
        place = torch.empty(n, dtype=torch.int64, device=confidence.device)
        place[confidence.argsort(stable=True)] = torch.arange(n, device=confidence.device) * bins // n
    else:
        place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    return gap.index_add(0, place, right - confidence).abs().sum() / n


def classification_metrics(probabilities: Tensor, targets: Tensor) -> dict[str, float]:
    """accuracy, nll (nat), brier, ece, adaptive_ece, and error_auroc: do errors have a smaller largest p?

    Args:
        probabilities: (n, K), or (n, 1) of class 1.
        targets: (n,) integer classes.
    """
    p, y = probabilities.double(), targets.long()
    confidence, predicted = both_classes(p).max(1)
    wrong = predicted != y
    return {
        "accuracy": float((~wrong).double().mean()),
        "nll": float(log_loss(p, y).mean()),
        "brier": float(brier_score(p, y).mean()),
        "ece": float(calibration_error(p, y)),
        "adaptive_ece": float(calibration_error(p, y, adaptive=True)),
        "error_auroc": float(auroc(-confidence[~wrong], -confidence[wrong])),
    }

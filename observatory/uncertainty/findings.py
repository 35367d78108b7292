"""What a record says about the error bars, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from observatory.records import Finding

if TYPE_CHECKING:
    from observatory.records import Run

NAMES = {
    "ood_raw": "s²",
    "ood_entropy": "the entropy of averaged probabilities",
    "ood_max_averaged": "the largest averaged probability",
    "ood_max_softmax": "the largest probability",
    "ood_energy": "the energy",
}


def sentences(run: Run) -> list[Finding]:
    """Findings of a record, of its last finite look."""
    if "nll" not in run or not len(run["nll"]):
        return []
    finite = np.flatnonzero(np.isfinite(run["nll"].values))
    if not len(finite):
        return [Finding("features or outputs were never finite: nothing can be said.", "warning")]
    last = int(finite[-1])
    value = {name: float(run[name].values[last]) for name in run if run[name].values.ndim == 1}
    found = _numbers(value) if "constant_nll" in value else _classes(value)
    if last < len(run["nll"]) - 1:
        step = int(run["nll"].steps[last + 1])
        found.append(Finding(f"from step {step} on the network is not finite.", "warning"))
    return [*found, *_elsewhere(value), _dimension(run, value)]


def _numbers(value: dict[str, float]) -> list[Finding]:
    gain = value["constant_nll"] - value["nll"]
    verdict = "better than" if gain > 0 else "worse than"
    ratio = value["alpha_median"] / value["alpha_nll"]
    found = [
        Finding(
            f"negative log-likelihood {value['nll']:.3f} nat with σ(x), {abs(gain):.3f} {verdict} with one σ "
            f"for all inputs ({value['constant_nll']:.3f})"
        ),
        Finding(
            f"mean z² {value['mean_z2']:.2f} (1 if calibrated), {100 * value['coverage_90']:.0f} % of the "
            f"rows in the 90 % interval; ρ(|r|, σ) = {value['spearman']:.2f} of at most "
            f"{value['spearman_ceiling']:.2f}"
        ),
        Finding(
            f"α = {value['alpha_nll']:.3g} from squares and {value['alpha_median']:.3g} from the median"
            + (": the errors have heavy tails" if ratio < 0.8 else ""),
            "note",
        ),
    ]
    if gain <= 0:
        found.append(Finding("noise dominates these data: consider noise='additive'.", "note"))
    return found


def _classes(value: dict[str, float]) -> list[Finding]:
    return [
        Finding(
            f"log loss {value['nll']:.4f} nat averaged, {value['temperature_nll']:.4f} with one temperature, "
            f"{value['plain_nll']:.4f} plain; calibration error {value['ece']:.4f} against "
            f"{value['plain_ece']:.4f}"
        ),
        Finding(f"the largest probability tells errors apart with an AUROC of {value['error_auroc']:.3f}"),
    ]


def _elsewhere(value: dict[str, float]) -> list[Finding]:
    scores = {name: value[key] for key, name in NAMES.items() if key in value}
    if not scores:
        return []
    best = max(scores, key=lambda name: scores[name])
    told = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    return [Finding(f"inputs from elsewhere are told apart best by {best} (AUROC: {told})")]


def _dimension(run: Run, value: dict[str, float]) -> Finding:
    first = float(run["effective_dimension"].values[0])
    d = run["spectrum"].values.shape[1]
    return Finding(
        f"effective dimension {first:.1f} at first and {value['effective_dimension']:.1f} at last of {d} "
        f"features (participation ratio {value['participation_ratio']:.1f})"
    )

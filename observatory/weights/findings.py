"""Sentences about the fluctuations of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from observatory.records import Finding
from observatory.weights.drift import COSINE_ALARM

if TYPE_CHECKING:
    from observatory.records import Run

KEPT = {
    "subset": "only a random subset of {kept:.0f} of {weights:.0f} weights was recorded",
    "sketch": "only {kept:.0f} random sums of the weights were recorded: no directions, no flatness",
    "directions": "only the leading directions were kept (frequent directions): no correlation times",
}


def sentences(run: Run) -> list[Finding]:
    """What the window of a record says."""
    if "variance" not in run or not len(run["variance"]):
        return []
    value = {name: float(run[name].values[-1]) for name in run if run[name].values.ndim == 1}
    if np.isfinite(value["diverged_at"]):
        step = value["diverged_at"]
        return [
            Finding(
                f"A weight was not finite at step {step:.0f}: nothing can be said of the window.", "warning"
            )
        ]
    cosine = float(run["cosine"].values[-1][0])
    return [
        *_rest(value, cosine),
        *_relation(value),
        *_choices(run),
        *_balance(value),
        *_recording(run, value),
    ]


def _rest(value: dict[str, float], cosine: float) -> list[Finding]:
    found = []
    if cosine > COSINE_ALARM:
        share = value["top_variance"] / value["total_variance"]
        left_out = "It is left out of the fit. " if value["first_rank"] > 1 else ""
        text = (
            f"The weights drifted: the first component, {share:.0%} of the variance, is half a cosine over "
            f"the window (|r| = {cosine:.3f}), as of a random walk. {left_out}Statements about "
            "fluctuations hold for the others only."
        )
        found.append(Finding(text, "warning"))
    ratio = value["dissipation_ratio"]
    if np.isfinite(ratio):
        rest = abs(ratio - 1) <= 0.1
        text = "as of a stationary state" if rest else "the run was not at rest"
        found.append(
            Finding(f"Fluctuation-dissipation ratio {ratio:.3f}: {text}.", "result" if rest else "warning")
        )
    samples = value["effective_samples"]
    if samples < 20:
        text = (
            f"The window holds only {samples:.1f} independent samples of the strongest motions; their "
            "variances are those of this window."
        )
        found.append(Finding(text, "warning"))
    return found


def _relation(value: dict[str, float]) -> list[Finding]:
    if not np.isfinite(value["exponent"]):
        loss = value["loss_at_mean"]
        text = f"No exponent: fewer than three directions have a flatness (loss at the mean {loss:.3g})."
        return [Finding(text, "note")]
    interval = ""
    if np.isfinite(value["exponent_low"]):
        interval = f"; 95 % of resampled windows {value['exponent_low']:.2f} to {value['exponent_high']:.2f}"
    kind = "an inverse relation" if value["exponent"] > 0 else "flatter directions fluctuate more"
    text = (
        f"σ² ∝ F^(-ψ) with ψ = {value['exponent']:.2f} ± {value['exponent_error']:.2f} over components "
        f"{value['first_rank']:.0f} to {value['last_rank']:.0f}, r = {value['correlation']:.2f}{interval}: "
        f"{kind}; equilibrium at one temperature has ψ = -2."
    )
    return [Finding(text, "result" if abs(value["correlation"]) > 0.9 else "note")]


def _choices(run: Run) -> list[Finding]:
    if "variant_exponent" not in run:
        return []
    exponents = np.asarray(run["variant_exponent"].values[-1])
    names = run["variant_exponent"].coordinates.get("variant", [])
    known = [(float(e), n) for e, n in zip(exponents, names, strict=False) if np.isfinite(e)]
    if len(known) < 2:
        return []
    low, high = min(known), max(known)
    depends = high[0] - low[0] > 0.5
    text = f"The exponent ranges from {low[0]:.2f} ({low[1]}) to {high[0]:.2f} ({high[1]})"
    tail = ": it depends on range, window or basis, and means little without them." if depends else "."
    return [Finding(text + tail, "warning" if depends else "note")]


def _balance(value: dict[str, float]) -> list[Finding]:
    if not np.isfinite(value["entropy_production"]):
        return []
    text = (
        f"Commutator of curvature and noise ‖[H, C]‖/‖HC‖ = {value['commutator']:.2f}: entropy production "
        f"{value['entropy_production']:.3g} and fastest rotation {value['rotation']:.3g} per unit of ηt."
    )
    return [Finding(text)]


def _recording(run: Run, value: dict[str, float]) -> list[Finding]:
    found = []
    stored = run["storage"].coordinates.get("storage", ["full"])[0] if "storage" in run else "full"
    if stored in KEPT:
        found.append(Finding(KEPT[stored].format(**value).capitalize() + ".", "warning"))
    if not np.isfinite(value["learning_rate"]):
        found.append(
            Finding(
                "No theory of the noise: the optimizer is not plain SGD, or its learning rate changed.",
                "note",
            )
        )
    elif not np.isfinite(run["temperature"].values[-1]).any():
        found.append(Finding("No temperatures: give batch_size=, samples= and sampling=.", "note"))
    return found

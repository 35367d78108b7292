"""What the Fisher information of a run says, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from observatory.ntk.stages_figures import in_words, stages_or_none
from observatory.records import Finding

if TYPE_CHECKING:
    from observatory.records import Run

FALL = 0.5  # of the way from the loss's first value to its lowest
NOISY = 0.2  # relative standard error of the estimator from which on it is mentioned


def sentences(run: Run) -> list[Finding]:
    """Findings of a record; empty before two looks are taken."""
    if "trace" not in run or len(run["trace"]) < 2:
        return []
    trace = run["trace"]
    finite = np.isfinite(trace.values)
    found = []
    if not finite.all():
        first = int(trace.steps[~finite][0])
        found.append(
            Finding(
                f"the Fisher information is not finite from step {first} on: the network has diverged",
                "warning",
            )
        )
    if finite.sum() < 2:
        return found
    steps, f = trace.steps[finite], trace.values[finite]
    found += [_course(steps, f), *_stages(steps, f), *_peak_and_loss(run, steps, f)]
    found += [*_empirical(run, finite), *_layers(run, finite), *_noise(run, finite), *_precision(run, finite)]
    return found


def _course(steps: NDArray, f: NDArray) -> Finding:
    top = int(f.argmax())
    where = {0: "at the first look", len(f) - 1: "at the last look"}.get(top, f"at step {steps[top]}")
    return Finding(
        f"the trace of the Fisher information went from {f[0]:.3g} to {f[-1]:.3g} and was largest {where}: "
        f"{f[top]:.3g}"
    )


def _stages(steps: NDArray, f: NDArray) -> list[Finding]:
    if (f <= 0).any():
        return []
    stages = stages_or_none(steps, np.log(f))
    return [] if stages is None else [Finding(f"its logarithm {in_words(stages, entropy=False)}")]


def _peak_and_loss(run: Run, steps: NDArray, f: NDArray) -> list[Finding]:
    """Whether the maximum comes before the loss has fallen half-way."""
    loss = run["loss"].values if "loss" in run else np.array([np.nan])
    top = int(f.argmax())
    if not np.isfinite(loss).all() or top in (0, len(f) - 1) or loss.min() >= loss[0]:
        return []
    fallen = int(run["loss"].steps[int((loss <= loss[0] + FALL * (loss.min() - loss[0])).argmax())])
    order = "before" if steps[top] < fallen else "when" if steps[top] == fallen else "after"
    return [
        Finding(
            f"its maximum at step {steps[top]} comes {order} the loss on the probe has fallen half of its "
            f"way (step {fallen})"
        )
    ]


def _empirical(run: Run, finite: NDArray) -> list[Finding]:
    if "empirical_trace" not in run:
        return []
    true, empirical = run["trace"].values[finite], run["empirical_trace"].values[finite]
    if not np.isfinite(empirical[[0, -1]]).all() or true[0] <= 0 or true[-1] <= 0:
        return []
    return [
        Finding(
            f"the empirical trace, with the labels of the data, is {empirical[0] / true[0]:.2g} times the "
            f"true one at the first look and {empirical[-1] / true[-1]:.2g} times at the last",
            "note",
        )
    ]


def _layers(run: Run, finite: NDArray) -> list[Finding]:
    names = run["layers"].coordinates.get("layer", []) if "layers" in run else []
    if len(names) < 2:
        return []
    values = run["layers"].values[finite]
    if not (values.sum(1) > 0).all():
        return []
    share = values / values.sum(1, keepdims=True)
    first, last = int(share[0].argmax()), int(share[-1].argmax())
    return [
        Finding(
            f"the largest part came from {names[first]} at the first look ({share[0, first]:.0%}) and from "
            f"{names[last]} at the last ({share[-1, last]:.0%})"
        )
    ]


def _noise(run: Run, finite: NDArray) -> list[Finding]:
    scale = run["noise_scale"].values[finite] if "noise_scale" in run else np.array([np.nan])
    if not np.isfinite(scale[[0, -1]]).all():
        return []
    return [
        Finding(
            f"signal and noise of the gradient are equal for batches of {scale[0]:.3g} examples at the first "
            f"look and {scale[-1]:.3g} at the last"
        )
    ]


def _precision(run: Run, finite: NDArray) -> list[Finding]:
    if "trace_error" not in run:
        return []
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.nanmedian(run["trace_error"].values[finite] / run["trace"].values[finite])
    if not relative > NOISY:
        return []
    text = f"the estimate of the trace has a standard error of {relative:.0%}: take more draws"
    return [Finding(f"{text} or a larger probe", "note")]

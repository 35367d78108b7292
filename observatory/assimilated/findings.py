"""What a fit of trajectories has found, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from observatory.physics.assimilation.confidence import SLOPPY
from observatory.records import Finding

if TYPE_CHECKING:
    from observatory.records import Run


def sentences(run: Run) -> list[Finding]:
    """Estimates with errors, misfit, and what is not determined."""
    if "misfit" not in run or not len(run["misfit"]):
        return []
    first, last = run["misfit"].values[[0, -1]]
    found = [Finding(f"misfit χ²/N fell from {first:.3g} to {last:.3g}; 1 is noise alone")]
    if not np.isfinite(last):
        return [Finding("the misfit is not finite: the solution has exploded", "warning")]
    if "estimate" in run and len(run["estimate"]):
        found = [*_estimates(run), *found]
        condition = float(run["condition"].values[-1])
        if condition > SLOPPY:
            text = f"a combination of the unknowns is not determined: condition number {condition:.1g}"
            found.append(Finding(text, "warning"))
    if "bounded" in run and run["bounded"].values[-1].any():
        names, bounded = run["bounded"].coordinates["parameter"], run["bounded"].values[-1]
        text = ", ".join(n for n, b in zip(names, bounded, strict=True) if b) + " ended at a bound"
        found.append(Finding(f"{text}: the data ask for values beyond it, or cannot tell", "warning"))
    if last > 2:
        text = f"χ²/N = {last:.3g}: the model, the noise or the minimum is not the right one"
        found.append(Finding(text, "warning"))
    return found


def _estimates(run: Run) -> list[Finding]:
    values, errors = run["estimate"].values[-1], run["error"].values[-1]
    names = run["estimate"].coordinates["parameter"]
    if len(values) == 1:
        told = ", ".join(
            f"{name} = {v:.5g} ± {e:.2g}" for name, v, e in zip(names, values[0], errors[0], strict=True)
        )
        return [Finding(told)]
    told = ", ".join(
        f"{name} = {np.median(values[:, k]):.4g} (± {np.median(errors[:, k]):.2g} each, "
        f"spread {values[:, k].std():.2g})"
        for k, name in enumerate(names)
    )
    return [Finding(f"medians over {len(values)} systems: {told}")]

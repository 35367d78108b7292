"""Order parameters of oscillation against the step, with the band that noise gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from observatory.dimension.oscillation import null_staggered
from observatory.records import Panel

if TYPE_CHECKING:
    from observatory.records import Run

LABELS = {
    "path_focusing": "focusing of paths",
    "participation_ratio": "participation ratio",
    "two_nn": "dimension (TwoNN)",
    "levina_bickel": "dimension (MLE)",
}


def lengths(run: Run) -> dict[str, int]:
    """Layers in each profile of a record: focusing leaves out the last hidden layer."""
    k = run["depth"].values.shape[1]
    return {name: k - (name == "path_focusing") for name in run["staggered"].coordinates.get("profile", [])}


def orders_panel(run: Run) -> Panel | None:
    """None where there are too few layers."""
    from matplotlib.figure import Figure

    m = run["staggered"]
    if not np.isfinite(m.values).any():
        return None
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axis = figure.subplots()
    for k, (name, size) in enumerate(lengths(run).items()):
        if np.isfinite(m.values[:, k]).any():
            axis.plot(m.steps, m.values[:, k], "o-", ms=3, lw=1, label=LABELS.get(name, name))
            mean, quantile = null_staggered(size)
    axis.axhspan(0, quantile, color="0.9", lw=0, label="95 % of noise")
    axis.axhline(mean, color="0.5", ls=":", lw=1, label="mean of noise")
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(left=-0.2)
    axis.set(xlabel="optimizer step", ylabel="staggered order m", ylim=(0, 1.02))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return Panel(
        "Does a profile oscillate over the layers?",
        figure,
        "m = |Σ(-1)^l z_l|/Σ|z_l| of each profile without its trend: 1 if it alternates from layer to layer. "
        "The band holds 95 % of what profiles of independent noise of that length give.",
    )

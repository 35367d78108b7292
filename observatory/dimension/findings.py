"""What dimension and focusing of a run say, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from observatory.dimension.figures_orders import LABELS, lengths
from observatory.dimension.oscillation import null_staggered, p_floor
from observatory.dimension.tails import FAR, FEWEST
from observatory.records import Finding

if TYPE_CHECKING:
    from observatory.records import Run

CURVED = 2.0  # standard errors by which an interior maximum must exceed both ends


def sentences(run: Run) -> list[Finding]:
    """Findings of a record; empty before the first look."""
    if "depth" not in run or not len(run["depth"]):
        return []
    found = _degenerate(run)
    name = next((n for n in ("levina_bickel", "two_nn") if n in run), None)
    if name is not None and np.isfinite(run[name].values[-1]).any():
        found.append(_dimension(run, name))
    if np.isfinite(run["path_focusing"].values[[0, -1]]).all():
        found.append(_focusing(run))
    found += _oscillation(run)
    return [*found, *_conserved(run), *_exponents(run)]


def _degenerate(run: Run) -> list[Finding]:
    points, layers = run["points"].values[-1], run["points"].coordinates.get("layer", [])
    found = []
    for dead, word in ((points == 1, "constant on the whole probe"), (np.isnan(points), "not finite")):
        if dead.any():
            names = ", ".join(np.asarray(layers)[dead]) if len(layers) == len(dead) else str(dead.sum())
            found.append(Finding(f"representations are {word} at the end: {names}", "warning"))
    dropped = np.nanmax(run["dropped"].values[-1], initial=0)
    if dropped > 0:
        found.append(
            Finding(
                f"up to {dropped:.0f} examples of the probe share their representation with another", "note"
            )
        )
    return found


def _dimension(run: Run, name: str) -> Finding:
    first, last = run[name].values[0], run[name].values[-1]
    error, depth = run[f"{name}_error"].values[-1], run["depth"].values[-1]
    text = (
        f"{LABELS[name]} from the first hidden layer to the last: {_ends(first)} before, {_ends(last)} after"
    )
    if not np.isfinite(last).all() or len(last) < 3:
        return Finding(text)
    top = int(last.argmax())
    margin = [last[top] - last[k] - CURVED * np.hypot(error[top], error[k]) for k in (0, -1)]
    if 0 < top < len(last) - 1 and min(margin) > 0:
        return Finding(
            f"{text}; it rises to {last[top]:.1f} at relative depth {depth[top]:.2f} and falls again"
        )
    steps = np.diff(last)
    if (steps < 0).all() or (steps > 0).all():
        return Finding(f"{text}; it {'falls' if steps[0] < 0 else 'rises'} from every layer to the next")
    return Finding(f"{text}; it has no maximum inside the network that stands out of its errors")


def _ends(profile: NDArray) -> str:
    return f"{profile[0]:.1f}" if len(profile) == 1 else f"{profile[0]:.1f} to {profile[-1]:.1f}"


def _focusing(run: Run) -> Finding:
    """Of all but the last hidden layer, which few outputs focus from the far side."""
    kept = slice(None, -1) if run["depth"].values.shape[1] > 1 else slice(None)
    nodes = run["nodes"].values[-1][kept]
    share = run["path_effective_nodes"].values[:, kept] / nodes
    before, after = share[0].mean(), share[-1].mean()
    how = "does not change" if abs(after - before) < 0.02 else "grows" if after < before else "shrinks"
    return Finding(
        f"focusing of the paths {how}: {before:.0%} of the nodes of a layer carry them before, {after:.0%} "
        f"after (participation ratio over width, mean over layers)"
    )


def _oscillation(run: Run) -> list[Finding]:
    m, p = run["staggered"].values[-1], run["oscillation_p"].values[-1]
    turning, found = run["turning_z"].values[-1], []
    for k, (name, size) in enumerate(lengths(run).items()):
        if not np.isfinite(m[k]):
            continue
        mean, quantile = null_staggered(size)
        verdict = "alternates beyond noise" if p[k] < 0.05 else "does not alternate beyond noise"
        found.append(
            Finding(
                f"the profile of {LABELS.get(name, name)} {verdict} at the end: m = {m[k]:.2f} over {size} "
                f"layers, noise gives {mean:.2f} and in 95 % less than {quantile:.2f}; p = {p[k]:.3f}, not "
                f"below {p_floor(size):.2g} for so many layers; turning points {turning[k]:+.1f} σ from noise"
            )
        )
    if found:
        found.append(Finding("one network gives one sample of an oscillation: compare seeds", "note"))
    return found


def _conserved(run: Run) -> list[Finding]:
    drift = run["imbalance_drift"].values[-1]
    if len(run["depth"]) < 2 or not np.isfinite(drift).any():
        return []
    return [
        Finding(
            f"differences of the strengths on either side of a node, which gradient flow conserves, moved by "
            f"up to {np.nanmax(drift):.2g} of the strengths themselves",
            "note",
        )
    ]


def _exponents(run: Run) -> list[Finding]:
    alpha, points, far = (run[n].values[-1] for n in ("alpha", "tail_points", "tail_distance"))
    sure = np.isfinite(alpha) & (points >= FEWEST) & (far <= FAR)
    told = f"spectral exponents mean something in {sure.sum()} of {len(alpha)} weight layers"
    if sure.any():
        told += f", where α is {alpha[sure].min():.1f} to {alpha[sure].max():.1f}"
    return [Finding(told, "note")]

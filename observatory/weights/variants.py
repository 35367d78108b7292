"""The exponent again, for other ranges, windows and bases: how much of it is a matter of choice."""

from __future__ import annotations

import torch
from torch import Tensor

from observatory.weights.analysis import Fluctuations, other_basis
from observatory.weights.components import principal_components, project
from observatory.weights.landscape import Landscape
from observatory.weights.motion import motion_along
from observatory.weights.relation import InverseRelation, fit_relation
from observatory.weights.terrain import flatness_along
from observatory.weights.trajectory import Trajectory

RANGES = (10, 20, 40, 60, 100)
CHOICES = ("first half", "second half", "detrended", "Hessian basis")


def range_names(directions: int) -> list[str]:
    """Names of the ranges of components for which the exponent is given."""
    return [f"ranks 2-{last}" for last in (*(last for last in RANGES if last < directions), directions)]


def exponents_by_range(fluctuations: Fluctuations, directions: int) -> dict[str, InverseRelation]:
    """ψ of components 2 ... 10, 2 ... 20 and so on."""
    motion, terrain = fluctuations.motion, fluctuations.terrain
    unknown = torch.full_like(motion.variance, torch.nan)
    flat = unknown if terrain is None else terrain.flatness
    return {
        name: fit_relation(motion.variance, flat, first=2, last=int(name.split("-")[1]))
        for name in range_names(directions)
    }


def exponents_by_choice(
    trajectory: Trajectory, landscape: Landscape, directions: int, *, seed: int = 0
) -> dict[str, InverseRelation]:
    """ψ of each half of the window, of the window without its linear trend, and in the Hessian's eigenbasis.

    Components are found anew in each case; the landscape is the one about the mean of the whole window. The
    first component is left out where it is a drift.
    """
    rows, half = trajectory.differences, len(trajectory) // 2
    found = {
        "first half": _exponent(rows[:half], trajectory.every, landscape, directions),
        "second half": _exponent(rows[half:], trajectory.every, landscape, directions),
        "detrended": _exponent(rows, trajectory.every, landscape, directions, trend=False),
    }
    generator = torch.Generator().manual_seed(seed)
    vectors = other_basis(landscape, "hessian", min(directions, trajectory.size), generator)
    variance = project(rows, vectors.to(rows.device)).var(0).to(vectors.device)
    flat = flatness_along(landscape, vectors, variance.sqrt()).width
    return found | {"Hessian basis": fit_relation(variance, flat)}


def _exponent(
    rows: Tensor, every: int, landscape: Landscape, directions: int, *, trend: bool = True
) -> InverseRelation:
    found, vectors = principal_components(rows, directions, trend=trend)
    motion = motion_along(found.projections, found, every=every, size=rows.shape[1])
    motion, vectors = motion.to(landscape.center.device), vectors.to(landscape.center.device)
    flat = flatness_along(landscape, vectors, motion.variance.sqrt()).width
    return fit_relation(motion.variance, flat, first=2 if motion.drift else 1)

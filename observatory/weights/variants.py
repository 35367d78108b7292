"""The exponent again, for other ranges, windows and bases: how much of it is a matter of choice."""

from __future__ import annotations

import torch
from torch import Tensor

from observatory.numerics.curvature import leading_eigenvectors
from observatory.weights.analysis import Fluctuations
from observatory.weights.components import centred_gram, components_of_gram, detrended, lift, project
from observatory.weights.landscape import Landscape
from observatory.weights.motion import motion_along
from observatory.weights.relation import InverseRelation, fit_relation
from observatory.weights.terrain import survey
from observatory.weights.trajectory import Trajectory

RANGES = (10, 20, 40, 60)


def exponents_by_range(
    fluctuations: Fluctuations, *, lasts: tuple[int, ...] = RANGES
) -> dict[str, InverseRelation]:
    """ψ of components 2 ... 10, 2 ... 20 and so on, as far as there are that many."""
    motion, terrain = fluctuations.motion, fluctuations.terrain
    count = len(motion.variance)
    return {
        f"ranks 2-{last}": fit_relation(motion.variance, terrain.flatness, first=2, last=last)
        for last in (*(last for last in lasts if last < count), count)
    }


def exponents_by_window(
    trajectory: Trajectory, landscape: Landscape, *, directions: int, seed: int = 0
) -> dict[str, InverseRelation]:
    """ψ of each half of the window, of the window without its linear trend, and in the Hessian's eigenbasis.

    Components are found anew in each case; the landscape is the one about the mean of the whole window. The
    first component is left out where it is a drift.
    """
    half = len(trajectory) // 2
    parts = {
        "first half": trajectory.differences[:half],
        "second half": trajectory.differences[half:],
    }
    found = {
        name: _exponent(rows, centred_gram(rows), trajectory.every, landscape, directions)
        for name, rows in parts.items()
    }
    rows = trajectory.differences
    gram = centred_gram(rows)
    found["detrended"] = _exponent(rows, detrended(gram), trajectory.every, landscape, directions)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(trajectory.size, generator=generator, dtype=torch.float64).to(rows.device)
    vectors = leading_eigenvectors(landscape.hessian_products, start, min(directions, trajectory.size))[1]
    projections = project(rows, vectors)
    variance = projections.square().sum(0) / (len(rows) - 1)
    flat = survey(landscape, vectors, variance.sqrt()).flatness
    found["Hessian basis"] = fit_relation(variance, flat)
    return found


def _exponent(
    rows: Tensor, gram: Tensor, every: int, landscape: Landscape, directions: int
) -> InverseRelation:
    components = components_of_gram(gram, count=directions)
    motion = motion_along(
        components.projections,
        every=every,
        spectrum=components.variance,
        total=components.total,
        size=rows.shape[1],
    )
    vectors = lift(rows, components.projections)
    flat = survey(landscape, vectors, motion.variance.sqrt()).flatness
    return fit_relation(motion.variance, flat, first=2 if motion.drift else 1)

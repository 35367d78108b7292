"""How well the data determine what was fitted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from observatory.numerics.least_squares import identifiability
from observatory.physics.assimilation.assimilation import Assimilation
from observatory.physics.assimilation.observability import warn_of_bounds
from observatory.physics.assimilation.sensitivities import Problem

SLOPPY = 1e10  # condition number of the scaled Fisher matrix beyond which something is not determined


@dataclass(frozen=True, eq=False)
class Estimates:
    """A fit at its minimum, to first order around it; G problems, see `Problem`."""

    values: Mapping[str, Tensor]  # θ, (systems,) where individual, else the shape of the parameter
    standard_errors: Mapping[
        str, Tensor
    ]  # of the same shapes; with noise of the given size, none in the model
    correlation: Tensor  # of the shared parameters, or those of each trajectory if none is, (G, P, P)
    condition: Tensor  # of the Fisher matrix of all unknowns scaled to unit diagonal, shape (G,)
    chi2: Tensor  # χ² per degree of freedom, shape (G,): 1 for a right model and a right noise


@torch.no_grad()
def estimates(model: Assimilation, batch: Any) -> Estimates:
    """Estimates with standard errors √ diag (JᵀJ)⁻¹, carried from the coordinates to the parameters.

    Warns where the Fisher matrix says that a combination of the unknowns is not determined by the data, and
    of parameters at a bound.
    """
    query, values = model.begin(batch)
    problem = Problem(model, query, values)
    x = problem.pack(model.coordinates)
    r, jacobian = problem.linearise(x)
    known = identifiability(jacobian)
    if (known.condition > SLOPPY).any():
        warnings.warn(
            f"the Fisher matrix has a condition number of {float(known.condition.max()):.1g}: a "
            "combination of the unknowns is not determined by these data; fix one of them, or observe more",
            UserWarning,
            stacklevel=2,
        )
    warn_of_bounds(model.at_bounds())
    z = dict(model.coordinates.z)
    ones = {name: torch.ones_like(value) for name, value in z.items()}
    value, slope = torch.func.jvp(model.estimates, (z,), (ones,))  # type: ignore[misc]
    errors = problem.unpack(known.standard_errors).z
    shown = sum(z[name].numel() for name in problem.shared) or len(problem.own)
    rows = values.isfinite().sum((1, 2)) + model.states[0, 1:].numel()  # and the gaps; below the priors
    rows = (rows.sum()[None] if problem.shared else rows) + problem.weights.shape[1]
    return Estimates(
        value,
        {name: slope[name].abs() * errors[name] for name in z},
        known.correlation[:, :shown, :shown],
        known.condition,
        r.square().sum(-1) / (rows - x.shape[1]),
    )

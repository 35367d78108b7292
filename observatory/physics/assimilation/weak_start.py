"""A first guess without a single solution: regression of the equation itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from observatory.numerics.curvature import prepare_forward_mode
from observatory.numerics.ode import VectorField
from observatory.numerics.weak_form import default_half_width, weak_form, weak_regression


def weak_start(
    field: VectorField, theta: Mapping[str, Tensor], y: Tensor, times: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weak-form estimates of parameters in which f is linear, from observations of all components.

    Args:
        theta: where f is linearised, one value per trajectory, shape (B,) each.
        y: observations (B, T, D).
        times: (B, T), regular and with the same step in all trajectories.

    Returns:
        Estimates and standard errors, shape (B,) each.

    Raises:
        ValueError: if the times are irregular, or f is not linear in the parameters.
    """
    steps = times.diff(dim=1)
    if not torch.allclose(steps, steps[:1, :1].expand_as(steps), rtol=1e-6, atol=0):
        raise ValueError("warm_start needs regular times, the same in all trajectories")
    prepare_forward_mode()
    names, lanes = list(theta), {name: value[:, None] for name, value in theta.items()}
    basis = torch.eye(len(names)).to(y)

    def slope(direction: Tensor) -> tuple[Tensor, Tensor]:
        tangents = {name: direction[k].expand_as(lanes[name]) for k, name in enumerate(names)}
        return torch.func.jvp(lambda theta: field(times, y, theta), (lanes,), (tangents,))  # type: ignore[return-value]

    value, library = torch.func.vmap(slope, out_dims=(None, -1))(basis)  # type: ignore[arg-type]
    known = value - sum(library[..., k] * lanes[name][..., None] for k, name in enumerate(names))
    _refuse_nonlinear(field, lanes, y, times, value, library)
    form = weak_form(y.shape[1], float(steps[0, 0]), half_width=default_half_width(y))
    found, errors = weak_regression(form, y, library, known)
    return dict(zip(names, found.unbind(-1), strict=True)), dict(zip(names, errors.unbind(-1), strict=True))


def _refuse_nonlinear(
    field: VectorField, lanes: Mapping[str, Tensor], y: Tensor, times: Tensor, value: Tensor, library: Tensor
) -> None:
    moved = {name: lane + 1 for name, lane in lanes.items()}
    linear = value + library.sum(-1)
    if not torch.allclose(field(times, y, moved), linear, rtol=1e-8, atol=1e-8 * float(linear.abs().max())):
        raise ValueError(
            f"warm_start: the right-hand side is not linear in {', '.join(lanes)}; give starting values"
        )

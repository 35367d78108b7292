"""Does the gradient hold?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from observatory.numerics.ode.explicit import State, Theta
from observatory.numerics.ode.field import VectorField
from observatory.numerics.ode.grid import Grid
from observatory.numerics.ode.integration import Gradient, integrate


@dataclass(frozen=True, eq=False)
class GradientCheck:
    """Derivatives of a loss along random directions of (initial state, θ), shape (directions,) each."""

    discrete: Tensor  # of the computed solution, by reverse mode
    continuous: Tensor  # by the interpolated adjoint equation
    difference: Tensor  # central finite differences

    @property
    def discrete_error(self) -> float:
        """Largest deviation from finite differences over the largest of these; 10⁻⁷ or so in float64."""
        return self._error(self.discrete)

    @property
    def continuous_error(self) -> float:
        """The same of the adjoint equation: the error of the discretisation."""
        return self._error(self.continuous)

    def _error(self, found: Tensor) -> float:
        return float((found - self.difference).abs().max() / self.difference.abs().max())


def check_gradients(
    system: nn.Module | VectorField,
    y: State,
    grid: Grid,
    loss: Callable[[State], Tensor],
    theta: Theta | None = None,
    *,
    method: str = "rk4",
    directions: int = 3,
    generator: torch.Generator | None = None,
) -> GradientCheck:
    """Compare the discrete, the continuous and the finite-difference derivative of `loss(solution)`.

    A discrete gradient that disagrees with differences points to a right-hand side with jumps, or in-place
    changes; a continuous one that disagrees with both to steps that are too large.

    Args:
        loss: of the states at the wanted times, a scalar.
        directions: drawn with `generator`, of unit length where each tensor is measured by its largest
            element.
    """
    field = system if isinstance(system, VectorField) else VectorField(system)
    theta = {name: value.detach() for name, value in (field.theta | dict(theta or {})).items()}
    flat, spec = tree_flatten((y, dict(theta)))
    flat = [leaf.detach() for leaf in flat]

    def value(leaves: list[Tensor], gradient: Gradient) -> Tensor:
        y, theta = tree_unflatten(leaves, spec)
        return loss(integrate(field, y, grid, theta, method=method, gradient=gradient))

    def along(gradient: Gradient, shifts: list[list[Tensor]]) -> Tensor:
        leaves = [leaf.clone().requires_grad_() for leaf in flat]
        slopes = torch.autograd.grad(
            value(leaves, gradient), leaves, allow_unused=True, materialize_grads=True
        )
        products = [[(g * s).sum() for g, s in zip(slopes, shift, strict=True)] for shift in shifts]
        return torch.stack([torch.stack(parts).sum() for parts in products])

    def differences(shift: list[Tensor]) -> Tensor:
        epsilon = torch.finfo(flat[0].dtype).eps ** (1 / 3)
        sides = [
            value([x + sign * epsilon * s for x, s in zip(flat, shift, strict=True)], "plain")
            for sign in (1, -1)
        ]
        return (sides[0] - sides[1]) / (2 * epsilon)

    shifts = [[_direction(leaf, generator) for leaf in flat] for _ in range(directions)]
    with torch.no_grad():
        measured = torch.stack([differences(shift) for shift in shifts])
    return GradientCheck(along("checkpointed", shifts), along("interpolated", shifts), measured)


def _direction(leaf: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.randn(leaf.shape, dtype=leaf.dtype, generator=generator).to(leaf.device)
    return noise * leaf.abs().max().clamp_min(1e-3) / max(leaf.numel(), 1) ** 0.5

"""The adjoint differential equation, solved backwards: an approximation of the gradient, for comparison."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from observatory.numerics.curvature import prepare_forward_mode
from observatory.numerics.ode.explicit import State, Theta, explicit_step
from observatory.numerics.ode.field import VectorField
from observatory.numerics.ode.grid import Grid
from observatory.numerics.ode.tableaux import Tableau

LOST_DIGITS = 15.0  # e¹⁵: what backward integration may amplify before its errors are the gradient


@dataclass(frozen=True, eq=False)
class Continuous:
    """λ' = -(∂f/∂y)ᵀ λ backwards, λ jumping by ∂L/∂y(t_k) at each wanted time; dL/dθ = ∫ λᵀ ∂f/∂θ dt.

    With `backsolve` the state is integrated backwards as well, from each wanted time; otherwise it is
    interpolated (cubic Hermite) between the stored states of all steps (Chen et al. 2018, arXiv:1806.07366).
    """

    field: VectorField
    tableau: Tableau
    grid: Grid
    backsolve: bool

    def adjoint(
        self, t: Tensor, y: State, cotangent: State, theta: Theta
    ) -> tuple[State, State, dict[str, Tensor]]:
        """f, -(∂f/∂y)ᵀ λ and -(∂f/∂θ)ᵀ λ."""
        slope, transposed = torch.func.vjp(  # type: ignore[misc]
            lambda y, theta: self.field(t, y, theta), y, dict(theta)
        )
        by_state, by_theta = transposed(cotangent)
        return slope, tree_map(torch.neg, by_state), {name: -value for name, value in by_theta.items()}

    def back(self, k: int, states: list[State], cotangent: Any, theta: Theta) -> Any:
        """(y, λ, μ) from the end of step k to its beginning."""
        t, h = self.grid.starts[k], self.grid.sizes[k]
        if self.backsolve:

            def moving(s: Tensor, z: Any, theta: Theta) -> Any:
                return self.adjoint(s, z[0], z[1], theta)

            return explicit_step(self.tableau, moving, t + h, -h, cotangent, theta)
        between = hermite(self.field, t, h, states[k], states[k + 1], theta)

        def interpolated(s: Tensor, z: Any, theta: Theta) -> Any:
            return self.adjoint(s, between((s - t) / h), z[0], theta)[1:]

        return (states[k], *explicit_step(self.tableau, interpolated, t + h, -h, cotangent[1:], theta))


def hermite(field: VectorField, t: Tensor, h: Tensor, left: State, right: State, theta: Theta) -> Any:
    """The cubic through both states with both slopes, as a function of x in [0, 1]."""
    one, other = field(t, left, theta), field(t + h, right, theta)

    def between(x: Tensor) -> State:
        a, b, c, d = (1 + 2 * x) * (1 - x) ** 2, x**2 * (3 - 2 * x), x * (1 - x) ** 2 * h, x**2 * (x - 1) * h
        return tree_map(lambda p, q, u, v: a * p + b * q + c * u + d * v, left, right, one, other)

    return between


class _Integrated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, problem: Continuous, names: tuple[str, ...], spec: TreeSpec, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        y, theta = tree_unflatten(list(flat[len(names) :]), spec), dict(zip(names, flat, strict=False))
        states = [y]
        for t, h in zip(problem.grid.starts.unbind(), problem.grid.sizes.unbind(), strict=True):
            states.append(explicit_step(problem.tableau, problem.field, t, h, states[-1], theta))
        wanted = [states[k] for k in problem.grid.saves]
        ctx.problem, ctx.spec, ctx.theta, ctx.last = problem, spec, theta, states[-1]
        ctx.states = [] if problem.backsolve else states
        ctx.wanted = wanted if problem.backsolve else []
        return tuple(
            torch.stack(leaves) for leaves in zip(*(tree_flatten(s)[0] for s in wanted), strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        problem, saves = ctx.problem, ctx.problem.grid.saves
        jumps = [
            tree_unflatten(list(leaves), ctx.spec)
            for leaves in zip(*(g.unbind() for g in gradients), strict=True)
        ]
        moving = (ctx.last, jumps[-1], {name: torch.zeros_like(value) for name, value in ctx.theta.items()})
        for j in reversed(range(len(saves) - 1)):
            for k in reversed(range(saves[j], saves[j + 1])):
                moving = problem.back(k, ctx.states, moving, ctx.theta)
            known = ctx.wanted[j] if problem.backsolve else moving[0]  # the way back starts anew from each
            moving = (known, tree_map(torch.add, moving[1], jumps[j]), moving[2])
        return (None, None, None, *moving[2].values(), *tree_flatten(moving[1])[0])


def integrated_adjoint(problem: Continuous, y: State, theta: Theta) -> State:
    """The states at the wanted times, shape (T, ...), with the gradient of the adjoint equation."""
    if problem.backsolve:
        warn_of_backsolve(problem, y, theta)
    leaves, spec = tree_flatten(y)
    return tree_unflatten(
        list(_Integrated.apply(problem, tuple(theta), spec, *theta.values(), *leaves)), spec
    )


def contraction_rate(field: VectorField, t: Tensor, y: State, theta: Theta, *, iterations: int = 30) -> float:
    """-Re λ of the eigenvalue of ∂f/∂y with the largest |λ|, by power iteration: large where f contracts."""
    prepare_forward_mode()
    generator = torch.Generator().manual_seed(0)
    theta = {name: value.detach() for name, value in theta.items()}
    v = tree_map(lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device), y)
    rate = 0.0
    for _ in range(iterations):
        length = sum(float(x.square().sum()) for x in tree_leaves(v)) ** 0.5
        if length == 0:
            return 0.0
        v = tree_map(lambda x, length=length: x / length, v)
        _, pushed = torch.func.jvp(lambda y: field(t, y, theta), (y,), (v,))  # type: ignore[misc]
        rate = -sum(float((a * b).sum()) for a, b in zip(tree_leaves(v), tree_leaves(pushed), strict=True))
        v = pushed
    return rate


def warn_of_backsolve(problem: Continuous, y: State, theta: Theta) -> None:
    """Say that a state which contracts cannot be integrated backwards."""
    with torch.no_grad():
        rate = contraction_rate(problem.field, problem.grid.starts[0], y, theta)
    ends = [*problem.grid.starts.unbind(), problem.grid.starts[-1] + problem.grid.sizes[-1]]
    saves = problem.grid.saves
    longest = max(float((ends[b] - ends[a]).max()) for a, b in itertools.pairwise(saves))
    if rate * longest > LOST_DIGITS:
        warnings.warn(
            f"backsolve: the fastest mode contracts at a rate of {rate:.3g} and grows by "
            f"e^{rate * longest:.3g} on the way back over {longest:.3g} between two wanted "
            "times, which drowns the gradient; use gradient='checkpointed', which is exact",
            UserWarning,
            stacklevel=4,
        )


__all__ = ["Continuous", "contraction_rate", "integrated_adjoint"]

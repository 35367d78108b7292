"""Integration of ordinary differential equations, with a choice of gradients."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from observatory.numerics.ode.compiled import Compiled, Repeated
from observatory.numerics.ode.continuous import Continuous, integrated_adjoint
from observatory.numerics.ode.discrete import Sweep, plain, reversible
from observatory.numerics.ode.explicit import State, Theta
from observatory.numerics.ode.field import VectorField
from observatory.numerics.ode.grid import Grid
from observatory.numerics.ode.splitting import method_of
from observatory.numerics.ode.tableaux import Tableau

Gradient = Literal["plain", "checkpointed", "interpolated", "backsolve"]


def integrate(
    system: nn.Module | VectorField,
    y: State,
    grid: Grid,
    theta: Theta | None = None,
    *,
    method: str = "rk4",
    gradient: Gradient = "plain",
    snapshots: int | None = None,
    compiled: bool = False,
) -> State:
    """The solution of y' = f(t, y; θ) at the wanted times.

    Gradients with respect to the initial state and θ:

    - "plain": automatic differentiation through the steps. Exact, of any order; remembers every intermediate.
    - "checkpointed": the same gradient, exact; remembers the first state and those of `snapshots` steps and
      recomputes the rest, at most r times where (s+r choose s) ≥ n for n steps and s = snapshots + 1. Below
      transforms of `torch.func`, which differentiate in ways of their own, it is "plain".
    - "interpolated": the adjoint differential equation, solved backwards beside the interpolated solution.
      Approximate to the order of the method, as the equation and its discretisation do not commute.
    - "backsolve": the same with the solution integrated backwards too; unsound where it contracts.

    Args:
        system: a module with `rhs(t, y)`, or its `VectorField`; t has shape () or that of the grid's lanes.
        y: initial state, a tensor or a nest of tensors; its leading dimensions are ensembles.
        grid: the steps, from `uniform_grid` or `adaptive_grid`.
        theta: tensors in place of parameters of the module, by name; of any shape that its code accepts,
            such as one value per lane.
        method: euler, heun, ssprk3, rk4, dopri5 or tsit5; for systems in parts verlet, rush_larsen or strang.
        snapshots: of "checkpointed"; default every step, which repeats none.
        compiled: step and transposed step as compiled code, once for each method and `VectorField`,
            whatever the number of steps; the module must be traceable.

    Returns:
        The states at the T wanted times, each tensor of shape (T, *shape of the initial one).

    Raises:
        ValueError: for an unknown method or gradient, or states that are not float32 or float64.
    """
    field = system if isinstance(system, VectorField) else VectorField(system)
    everything = field.theta | dict(theta or {})
    rule = method_of(method)
    for leaf in tree_leaves(y):
        if leaf.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"states are float32 or float64, got {leaf.dtype}: smaller ones do not resolve a step"
            )
    if gradient in ("plain", "checkpointed"):
        names = list(everything)
        leaves, spec = tree_flatten(y)
        step, pull = (make(rule, names, spec, compiled=compiled) for make in (field.step, field.pull))
        if gradient == "plain" or torch._C._are_functorch_transforms_active():
            states = plain(Sweep(grid, step, pull, 0), tuple(leaves), tuple(everything.values()))
        else:
            kept = len(grid) - 1 if snapshots is None else min(snapshots, len(grid) - 1)
            step, pull = (Repeated(f) if isinstance(f, Compiled) else f for f in (step, pull))
            states = reversible(Sweep(grid, step, pull, kept), tuple(leaves), tuple(everything.values()))
        return tree_unflatten(list(states), spec)
    if gradient in ("interpolated", "backsolve"):
        if not isinstance(rule, Tableau):
            raise ValueError(f"the adjoint equation is solved by Runge-Kutta methods, not by {method}")
        return integrated_adjoint(Continuous(field, rule, grid, gradient == "backsolve"), y, everything)
    raise ValueError(f"gradient is plain, checkpointed, interpolated or backsolve, got {gradient!r}")

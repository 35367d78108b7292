"""The right-hand side of a module as a function f(t, y; θ), and one step of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from observatory.numerics.ode.explicit import State, Theta, explicit_step
from observatory.numerics.ode.splitting import Splitting
from observatory.numerics.ode.tableaux import Tableau

Step = Callable[[Tensor, Tensor, State, Theta], State]  # (t, h, y, θ) -> y at t + h
Slopes = dict[str, Tensor]  # λᵀ∂/∂θ, by name
Pull = Callable[[Tensor, Tensor, State, Theta, State, Slopes], tuple[State, Slopes]]


class _Called(nn.Module):
    """Runs a method of the system inside `functional_call`."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, part: str, t: Tensor, y: State) -> State:
        return getattr(self.system, part)(t, y)


class VectorField:
    """f(t, y; θ) of a module with `rhs(t, y)`, θ being its parameters by name.

    The state y is a tensor or a nest of tensors (a dictionary of fields); leading dimensions are
    ensembles, as far as the module's own code allows. Compiled steps are kept here, so keep the object to
    keep them; attributes of the module other than tensors are constants of theirs, so make a new object when
    one of them has changed.

    Raises:
        TypeError: if the module has no `rhs(t, y)`.
    """

    def __init__(self, system: nn.Module) -> None:
        if not callable(getattr(system, "rhs", None)):
            raise TypeError(f"{type(system).__name__} has no right-hand side rhs(t, y)")
        self.system = system
        self._called = _Called(system)
        self._kept: dict[tuple[str, Tableau | Splitting], Any] = {}

    def __getstate__(self) -> dict[str, Any]:  # compiled code is neither pickled nor copied
        return self.__dict__ | {"_kept": {}}

    @property
    def theta(self) -> dict[str, Tensor]:
        """The live parameters."""
        return dict(self.system.named_parameters())

    def __call__(self, t: Tensor, y: State, theta: Theta) -> State:
        return self._part("rhs", t, y, theta)

    def flow(self, h: Tensor, y: State, theta: Theta) -> State:
        """The state moved for a time h by the part that the module keeps out of `rhs`; see `strang`."""
        return self._part("flow", h, y, theta)

    def _part(self, name: str, t: Tensor, y: State, theta: Theta) -> State:
        named = {f"system.{name}": value for name, value in theta.items()}
        return torch.func.functional_call(self._called, named, (name, t, y))

    def step(self, method: Tableau | Splitting, *, compiled: bool = False) -> Step:
        """One step of a method, (t, h, y, θ) to y at t + h."""

        def advance(t: Tensor, h: Tensor, y: State, theta: Theta) -> State:
            return one_step(method, self, t, h, y, theta)

        return self._keep("step", method, advance) if compiled else advance

    def pull(self, method: Tableau | Splitting, *, compiled: bool = False) -> Pull:
        """The transposed derivative of a step, (t, h, y, θ, λ, s) to (λᵀ∂y₊/∂y, s + λᵀ∂y₊/∂θ).

        It recomputes the stages.
        """

        def back(
            t: Tensor, h: Tensor, y: State, theta: Theta, cotangent: State, slopes: Slopes
        ) -> tuple[State, Slopes]:
            _, transposed = torch.func.vjp(  # type: ignore[misc]
                lambda y, theta: one_step(method, self, t, h, y, theta), y, dict(theta)
            )
            by_state, by_theta = transposed(cotangent)
            return by_state, {name: slopes[name] + value for name, value in by_theta.items()}

        return self._keep("pull", method, back) if compiled else back

    def _keep(self, kind: str, method: Tableau | Splitting, function: Callable) -> Any:
        if (kind, method) not in self._kept:
            options: dict[str, Any] = {"guard_filter_fn": _of_tensors}
            code = torch.compile(function, fullgraph=True, options=options)
            self._kept[kind, method] = lambda *arguments: code(*_any_number_of_lanes(arguments))
        return self._kept[kind, method]


def _of_tensors(guards: Any) -> list[bool]:
    """The guards of the tensors that go in: those of the module's insides take a third of a step's time."""
    return [g.guard_type in ("TENSOR_MATCH", "SHAPE_ENV") and "_called" not in g.name for g in guards]


def _any_number_of_lanes(arguments: Any) -> Any:
    """Arguments marked so that compiled code serves every number ≥ 2 of lanes in the first dimension.

    At every call: code that was made for marked tensors does not serve others.
    """
    for leaf in tree_leaves(arguments):
        if leaf.ndim and len(leaf) > 1:
            torch._dynamo.maybe_mark_dynamic(leaf, 0)
    return arguments


def one_step(
    method: Tableau | Splitting, field: VectorField, t: Tensor, h: Tensor, y: State, theta: Theta
) -> State:
    """y at t + h."""
    if isinstance(method, Tableau):
        return explicit_step(method, field, t, h, y, theta)
    return method(field, t, h, y, theta)

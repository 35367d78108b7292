"""The right-hand side of a module as a function f(t, y; θ), and one step of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from observatory.numerics.ode.tableaux import Tableau

State = Any  # a tensor, or tensors nested in dicts, tuples and lists
Theta = Mapping[str, Tensor]
Step = Callable[[Tensor, Tensor, State, Theta], State]  # (t, h, y, θ) -> y at t + h
Slopes = dict[str, Tensor]  # λᵀ∂/∂θ, by name
Pull = Callable[[Tensor, Tensor, State, Theta, State, Slopes], tuple[State, Slopes]]


class _Called(nn.Module):
    """Runs `rhs` inside `functional_call`."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, t: Tensor, y: State) -> State:
        return self.system.rhs(t, y)  # type: ignore[operator]


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
        self._kept: dict[tuple[str, Tableau], Any] = {}

    def __getstate__(self) -> dict[str, Any]:  # compiled code is neither pickled nor copied
        return self.__dict__ | {"_kept": {}}

    @property
    def theta(self) -> dict[str, Tensor]:
        """The live parameters."""
        return dict(self.system.named_parameters())

    def __call__(self, t: Tensor, y: State, theta: Theta) -> State:
        named = {f"system.{name}": value for name, value in theta.items()}
        return torch.func.functional_call(self._called, named, (t, y))

    def step(self, tableau: Tableau, *, compiled: bool = False) -> Step:
        """One step of a method, (t, h, y, θ) to y at t + h."""

        def advance(t: Tensor, h: Tensor, y: State, theta: Theta) -> State:
            return explicit_step(tableau, self, t, h, y, theta)

        return self._keep("step", tableau, advance) if compiled else advance

    def pull(self, tableau: Tableau, *, compiled: bool = False) -> Pull:
        """The transposed derivative of a step, (t, h, y, θ, λ, s) to (λᵀ∂y₊/∂y, s + λᵀ∂y₊/∂θ).

        It recomputes the stages.
        """

        def back(
            t: Tensor, h: Tensor, y: State, theta: Theta, cotangent: State, slopes: Slopes
        ) -> tuple[State, Slopes]:
            _, transposed = torch.func.vjp(  # type: ignore[misc]
                lambda y, theta: explicit_step(tableau, self, t, h, y, theta), y, dict(theta)
            )
            by_state, by_theta = transposed(cotangent)
            return by_state, {name: slopes[name] + value for name, value in by_theta.items()}

        return self._keep("pull", tableau, back) if compiled else back

    def _keep(self, kind: str, tableau: Tableau, function: Callable) -> Any:
        if (kind, tableau) not in self._kept:
            options: dict[str, Any] = {"guard_filter_fn": _of_tensors}
            code = torch.compile(function, fullgraph=True, options=options)
            self._kept[kind, tableau] = lambda *arguments: code(*_any_number_of_lanes(arguments))
        return self._kept[kind, tableau]


def _of_tensors(guards: Any) -> list[bool]:
    """The guards of the tensors that go in: those of the module's insides take a third of a step's time."""
    return [g.guard_type in ("TENSOR_MATCH", "SHAPE_ENV") and "_called" not in g.name for g in guards]


def _any_number_of_lanes(arguments: Any) -> Any:
    """Arguments marked so that compiled code serves every number ≥ 2 of lanes in the first dimension."""
    for leaf in tree_leaves(arguments):
        if leaf.ndim and len(leaf) > 1:
            torch._dynamo.maybe_mark_dynamic(leaf, 0)
    return arguments


def explicit_step(
    tableau: Tableau,
    field: Callable[[Tensor, State, Theta], State],
    t: Tensor,
    h: Tensor,
    y: State,
    theta: Theta,
) -> State:
    """One explicit Runge-Kutta step; t and h have shape () or that of the leading dimensions (lanes) of y."""
    slopes: list[State] = []
    for row, c in zip(tableau.a, tableau.c, strict=True):
        slopes.append(field(t + c * h, combined(y, h, row, slopes), theta))
    return combined(y, h, tableau.b, slopes)


def combined(y: State, h: Tensor, weights: tuple[float, ...], slopes: list[State]) -> State:
    """y + h Σ wᵢ kᵢ."""
    terms = [(w, k) for w, k in zip(weights, slopes, strict=True) if w]
    if not terms:
        return y

    def leaf(y: Tensor, *k: Tensor) -> Tensor:
        total = sum(w * k for (w, _), k in zip(terms, k, strict=True))
        return y + h.reshape(h.shape + (1,) * (y.ndim - h.ndim)) * total

    return tree_map(leaf, y, *(k for _, k in terms))

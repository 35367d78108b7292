"""The right-hand side of a module as a function f(t, y; θ), and one step of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

from observatory.numerics.ode.compiled import Compiled, Flat, Function
from observatory.numerics.ode.explicit import State, Theta, explicit_step
from observatory.numerics.ode.splitting import Splitting
from observatory.numerics.ode.tableaux import Tableau


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
        self._kept: dict[tuple[Any, ...], Compiled] = {}

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

    def step(
        self, method: Tableau | Splitting, names: Sequence[str], spec: TreeSpec, *, compiled: bool = False
    ) -> Function:
        """One step of a method, (t, h, *θ, *y) to y at t + h.

        Args:
            method: which.
            names: of the parameters θ, in their order.
            spec: how the tensors y are nested.
            compiled: as compiled code, made once for each field, method and nest.
        """

        def advance(t: Tensor, h: Tensor, *flat: Tensor) -> Flat:
            theta = dict(zip(names, flat, strict=False))
            y = tree_unflatten(flat[len(names) :], spec)
            return tuple(tree_leaves(one_step(method, self, t, h, y, theta)))

        return self._keep(("step", method, tuple(names), str(spec)), advance) if compiled else advance

    def pull(
        self, method: Tableau | Splitting, names: Sequence[str], spec: TreeSpec, *, compiled: bool = False
    ) -> Function:
        """The transposed derivative of a step, (t, h, *θ, *y, *λ, *s) to (*λᵀ∂y₊/∂y, *(s + λᵀ∂y₊/∂θ)).

        It recomputes the stages. Arguments are those of `step`.
        """
        k, n = len(names), spec.num_leaves

        def back(t: Tensor, h: Tensor, *flat: Tensor) -> Flat:
            theta, y = dict(zip(names, flat, strict=False)), tree_unflatten(flat[k : k + n], spec)
            _, transposed = torch.func.vjp(  # type: ignore[misc]
                lambda y, theta: one_step(method, self, t, h, y, theta), y, theta
            )
            by_state, by_theta = transposed(tree_unflatten(flat[k + n : k + 2 * n], spec))
            slopes = zip(names, flat[k + 2 * n :], strict=True)
            return (*tree_leaves(by_state), *(slope + by_theta[name] for name, slope in slopes))

        return self._keep(("pull", method, tuple(names), str(spec)), back) if compiled else back

    def _keep(self, key: tuple[Any, ...], function: Function) -> Compiled:
        if key not in self._kept:
            self._kept[key] = Compiled(function)
        return self._kept[key]


def one_step(
    method: Tableau | Splitting, field: VectorField, t: Tensor, h: Tensor, y: State, theta: Theta
) -> State:
    """y at t + h."""
    if isinstance(method, Tableau):
        return explicit_step(method, field, t, h, y, theta)
    return method(field, t, h, y, theta)

"""Steps that take parts of a right-hand side apart: forces from velocities, gates, stiff linear parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from observatory.numerics.ode.explicit import State, Theta, explicit_step
from observatory.numerics.ode.tableaux import TABLEAUX, Tableau

if TYPE_CHECKING:
    from observatory.numerics.ode.field import VectorField

Splitting = Callable[["VectorField", Tensor, Tensor, Any, Any], Any]  # (f, t, h, y, θ) -> y at t + h


def verlet(field: VectorField, t: Tensor, h: Tensor, y: State, theta: Theta) -> State:
    """Velocity Verlet for q' = v, v' = a(t, q): half a kick, a drift, half a kick.

    Second order, symplectic and reversible, so that energies stay bounded for as long as one likes
    (Verlet, Phys. Rev. 159, 98 (1967)). Where the force depends on v the order is lost.

    The state is a tensor whose last dimension holds positions and then velocities, or a pair of them (a
    tuple, or a dictionary in this order).

    Raises:
        ValueError: for a state that is not of two halves.
    """
    q, v = halves(y)
    v = tree_map(lambda v, a: v + _fit(h, v) / 2 * a, v, halves(field(t, y, theta))[1])
    drift = halves(field(t, rejoined(y, q, v), theta))[0]
    q = tree_map(lambda q, d: q + _fit(h, q) * d, q, drift)
    kick = halves(field(t + h, rejoined(y, q, v), theta))[1]
    return rejoined(y, q, tree_map(lambda v, a: v + _fit(h, v) / 2 * a, v, kick))


def halves(y: State) -> tuple[State, State]:
    """Positions and velocities of a state."""
    if isinstance(y, Tensor) and y.ndim and y.shape[-1] % 2 == 0:
        return y.chunk(2, -1)  # type: ignore[return-value]
    parts = list(y.values()) if isinstance(y, dict) else y
    if isinstance(y, Tensor) or len(parts) != 2:
        given = tuple(y.shape) if isinstance(y, Tensor) else f"{len(parts)} parts"
        raise ValueError(f"verlet needs a state of positions and velocities, got one of {given}")
    return parts[0], parts[1]


def rejoined(like: State, q: State, v: State) -> State:
    """The inverse of `halves`."""
    if isinstance(like, Tensor):
        return torch.cat([q, v], -1)
    return dict(zip(like, (q, v), strict=True)) if isinstance(like, dict) else (q, v)


def rush_larsen(field: VectorField, t: Tensor, h: Tensor, y: State, theta: Theta) -> State:
    """Gates by the exact solution at fixed voltage, everything else by Euler's method; first order.

    A gate g' = (g∞ - g)/τ goes to g∞ + (g - g∞) e^(-h/τ), and stays between 0 and 1 for any h (Rush and
    Larsen, IEEE Trans. Biomed. Eng. 25, 389 (1978)). 1/τ is taken from the derivative of its equation, which
    holds no other gate.

    The state is a dictionary of fields; the system names those that are gates in its attribute `gates`.

    Raises:
        ValueError: for a system without gates.
    """
    gates = tuple(getattr(field.system, "gates", ()))
    if not isinstance(y, dict) or not gates or not set(gates) <= set(y):
        raise ValueError(
            f"rush_larsen needs a state of named fields and a system that says which are `gates`; "
            f"{type(field.system).__name__} has gates={gates}"
        )
    slope, pull = torch.func.vjp(lambda y: field(t, y, theta), y)  # type: ignore[misc]
    ones = {k: torch.ones_like(x) if k in gates else torch.zeros_like(x) for k, x in y.items()}
    (rate,) = pull(ones)  # of a gate, -1/τ

    def advanced(name: str) -> Tensor:
        size = _fit(h, y[name])
        return y[name] + size * (_phi(size * rate[name]) if name in gates else 1.0) * slope[name]

    return {name: advanced(name) for name in y}


def _phi(z: Tensor) -> Tensor:
    """(eᶻ - 1)/z."""
    small = z.abs() < 1e-6
    safe = torch.where(small, 1.0, z)  # a 0/0 in the branch that is not taken would be NaN in the gradient
    return torch.where(small, 1 + z / 2, torch.expm1(safe) / safe)


def strang(field: VectorField, t: Tensor, h: Tensor, y: State, theta: Theta) -> State:
    """Half a step of the stiff linear part, a step of `rhs` by Heun's method, another half; second order.

    The system moves a state by its linear part in `flow(h, y)`, such as diffusion by `crank_nicolson`, which
    is stable for any h, and leaves it out of `rhs(t, y)` (Strang, SIAM J. Numer. Anal. 5, 506 (1968)).

    Raises:
        ValueError: for a system without `flow`.
    """
    if not callable(getattr(field.system, "flow", None)):
        raise ValueError(f"strang needs a system with flow(h, y); {type(field.system).__name__} has none")
    y = field.flow(h / 2, y, theta)
    y = explicit_step(TABLEAUX["heun"], field, t, h, y, theta)
    return field.flow(h / 2, y, theta)


def _fit(h: Tensor, y: Tensor) -> Tensor:
    """Sizes of the lanes, shaped to multiply a state."""
    return h.reshape(h.shape + (1,) * (y.ndim - h.ndim))


SPLITTINGS: dict[str, Splitting] = {"verlet": verlet, "rush_larsen": rush_larsen, "strang": strang}


def method_of(name: str) -> Tableau | Splitting:
    """The table or the rule of a method.

    Raises:
        ValueError: for an unknown name.
    """
    known: dict[str, Any] = TABLEAUX | SPLITTINGS
    if name not in known:
        raise ValueError(f"method must be one of {', '.join(known)}, got {name!r}")
    return known[name]

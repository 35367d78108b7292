"""One explicit Runge-Kutta step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from observatory.numerics.ode.tableaux import Tableau

State = Any  # a tensor, or tensors nested in dicts, tuples and lists
Theta = Mapping[str, Tensor]


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

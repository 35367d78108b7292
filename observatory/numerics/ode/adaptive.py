"""Steps as small as the solution asks for, in every lane its own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from observatory.numerics.ode.explicit import State, Theta, combined
from observatory.numerics.ode.field import VectorField
from observatory.numerics.ode.grid import Grid, checked_intervals
from observatory.numerics.ode.tableaux import TABLEAUX, Tableau

SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0


@torch.no_grad()
def adaptive_grid(
    system: nn.Module | VectorField,
    y: State,
    times: Tensor,
    theta: Theta | None = None,
    *,
    method: Literal["dopri5", "tsit5"] = "dopri5",
    rtol: float = 1e-6,
    atol: float = 1e-8,
    lanes: int = 0,
    max_steps: int = 100_000,
) -> Grid:
    """The steps with which a method keeps the estimated error of each below atol + rtol |y|.

    Integrate on them with the same method: every kind of gradient is then that of a fixed sequence of
    steps, in which their sizes are constants. The steps end exactly on the wanted times.

    Args:
        system: a module with `rhs(t, y)`.
        y: initial state.
        times: shape (T,), or (T, *lanes).
        theta: in place of parameters of the module.
        method: one that estimates its error.
        lanes: leading dimensions of the state that are integrated each with steps of its own; with 0 all
            that is in the state shares its steps. A lane that has reached a wanted time waits there for
            the others.
        max_steps: accepted and rejected ones.

    Raises:
        ValueError: if the steps become too small for the floating-point type, or too many.
    """
    field = system if isinstance(system, VectorField) else VectorField(system)
    tableau = TABLEAUX[method]
    theta = field.theta | dict(theta or {})
    checked_intervals(times)
    shape = tree_leaves(y)[0].shape[:lanes]
    if times.ndim > 1 and times.shape[1:] != shape:
        raise ValueError(
            f"times of {tuple(times.shape[1:])} lanes for a state with lanes={lanes}: {tuple(shape)}"
        )
    ends = times.reshape(-1, *(times.shape[1:] or [1] * lanes)).expand(-1, *shape)
    t, slope = ends[0], field(ends[0], y, theta)
    size = 0.01 * _norm(y, y, y, rtol, atol, lanes) / _norm(slope, y, y, rtol, atol, lanes).clamp_min(1e-12)
    starts, sizes, saves, tried = [], [], [0], 0
    for end in ends[1:]:
        while (left := end - t).gt(0).any():
            tried += 1
            h = torch.minimum(size, left)
            if tried > max_steps or (h.lt(4 * torch.finfo(t.dtype).eps * t.abs()) & h.lt(left)).any():
                raise ValueError(
                    f"{tried} steps down to {float(h[h > 0].min()):.2g} at time {float(t.min()):.6g}: "
                    "the solution is stiff or singular there; "
                    f"loosen rtol={rtol:g} or raise max_steps={max_steps}"
                )
            proposed, error = _attempt(tableau, field, t, h, y, theta)
            ratio = _norm(error, y, proposed, rtol, atol, lanes)
            ratio = torch.where(ratio.isfinite(), ratio, 1e10)
            accepted = (ratio <= 1) & (left > 0)
            factor = (SAFETY * ratio.clamp_min(1e-10) ** (-1 / tableau.order)).clamp(SHRINK, GROW)
            # a step cut short to end on a wanted time says nothing against the size before it
            size = torch.where(left > 0, torch.where(accepted & (h < size), size, h * factor), size)
            if accepted.any():
                h = torch.where(accepted, h, 0)
                starts.append(t)
                sizes.append(h)
                t = torch.where(accepted & (h >= left), end, t + h)
                y = tree_map(lambda new, old, a=accepted: torch.where(_lanes(a, old), new, old), proposed, y)
        saves.append(len(sizes))
    return Grid(torch.stack(starts), torch.stack(sizes), tuple(saves))


def _attempt(
    tableau: Tableau, field: VectorField, t: Tensor, h: Tensor, y: State, theta: Theta
) -> tuple[State, State]:
    """A step and the estimate of its error."""
    slopes: list[State] = []
    for row, c in zip(tableau.a, tableau.c, strict=True):
        slopes.append(field(t + c * h, combined(y, h, row, slopes), theta))
    return combined(y, h, tableau.b, slopes), combined(
        tree_map(torch.zeros_like, y), h, tableau.error, slopes
    )


def _norm(x: State, old: State, new: State, rtol: float, atol: float, lanes: int) -> Tensor:
    """Root mean square of x / (atol + rtol max(|old|, |new|)) over all but the lanes."""

    def squares(x: Tensor, old: Tensor, new: Tensor) -> Tensor:
        ratio = x / (atol + rtol * torch.maximum(old.abs(), new.abs()))
        return ratio.square().reshape(*x.shape[:lanes], -1)

    leaves = zip(tree_leaves(x), tree_leaves(old), tree_leaves(new), strict=True)
    return torch.cat([squares(*parts) for parts in leaves], -1).mean(-1).sqrt()


def _lanes(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))

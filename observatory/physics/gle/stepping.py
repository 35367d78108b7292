"""Steps of an ensemble: y ← M y + R ξ, then a kick of the velocity, on all lanes at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from observatory.physics.gle.potentials import Potential

CHUNK = 16  # steps in one compiled kernel: more compile longer, fewer cost more calls

# y (S, d+1, P) of S sets, P lanes; noise (T, 1 or S, d, P); M, R, kick of each set; U; positions (T, S, P)
Advance = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Potential, Tensor], Tensor]


def choose(sets: int, *, compiled: bool, differentiable: bool) -> Advance:
    """How to take the steps: the fastest of those that do what is asked for."""
    if differentiable:
        return _differentiable
    if compiled:
        return _compiled
    return _single if sets == 1 else _together


def _single(
    y: Tensor, noise: Tensor, M: Tensor, R: Tensor, kick: Tensor, potential: Potential, xs: Tensor
) -> Tensor:
    """One parameter set: two-dimensional products are the fastest."""
    matrix, factor, both = M[0], float(kick), (y[0], torch.empty_like(y[0]))
    (y, x, v), (other, other_x, other_v) = ((b, b[0], b[1]) for b in both)
    for eta, row in zip((R @ noise)[:, 0].unbind(), xs[:, 0].unbind(), strict=True):
        torch.addmm(eta, matrix, y, out=other)
        y, x, v, other, other_x, other_v = other, other_x, other_v, y, x, v
        row.copy_(x)
        v.add_(potential.gradient(row), alpha=factor)
    return y[None]


def _together(
    y: Tensor, noise: Tensor, M: Tensor, R: Tensor, kick: Tensor, potential: Potential, xs: Tensor
) -> Tensor:
    """Many parameter sets."""
    other = torch.empty_like(y)
    for eta, row in zip((R @ noise).unbind(), xs.unbind(), strict=True):
        torch.baddbmm(eta.expand_as(y), M, y, out=other)
        y, other = other, y
        row.copy_(y[:, 0])
        y[:, 1].addcmul_(potential.gradient(row), kick)
    return y


def _differentiable(
    y: Tensor, noise: Tensor, M: Tensor, R: Tensor, kick: Tensor, potential: Potential, xs: Tensor
) -> Tensor:
    """Nothing in place but the store: gradients flow to M, R and the kick."""
    velocity = torch.zeros_like(y[:1, :, :1])
    velocity[:, 1] = 1
    for t, eta in enumerate((R @ noise).unbind()):
        y = torch.baddbmm(eta.expand_as(y), M, y)
        xs[t] = y[:, 0]
        y = y + velocity * (kick * potential.gradient(y[:, 0]))[:, None]
    return y


def _compiled(
    y: Tensor, noise: Tensor, M: Tensor, R: Tensor, kick: Tensor, potential: Potential, xs: Tensor
) -> Tensor:
    """Chunks of steps as one kernel, in which a lane stays in registers."""
    kernel = _chunk_kernel(potential)  # type: ignore[arg-type]  # frozen dataclasses are hashable
    whole = len(noise) // CHUNK
    for k, (xi, rows) in enumerate(zip(noise.split(CHUNK), xs.split(CHUNK), strict=True)):
        if k == whole:  # what is left over
            y, positions = _chunk(y, xi, M, R, kick, potential)
        else:  # every chunk is like the first, whose guards have passed: no need to check them again
            with torch.compiler.set_stance(skip_guard_eval_unsafe=k > 0):
                y, positions = kernel(y, xi, M, R, kick, potential)
        rows.copy_(positions)
    return y


@cache
def _chunk_kernel(potential: Potential) -> Any:
    """A compiled function for each potential, so that none of them is a reason to compile another again."""
    return torch.compile(_chunk, dynamic=False)


def _chunk(
    y: Tensor, noise: Tensor, M: Tensor, R: Tensor, kick: Tensor, potential: Potential
) -> tuple[Tensor, Tensor]:
    """Products written out, elementwise over the lanes: one loop for a compiler to fuse."""
    state, positions = list(y.unbind(-2)), []
    for xi in noise.unbind():
        kicks = xi.unbind(-2)
        state = [_row(M[:, i], state) + _row(R[:, i], kicks) for i in range(len(state))]
        state[1] = state[1] + kick * potential.gradient(state[0])
        positions.append(state[0])
    return torch.stack(state, -2), torch.stack(positions)


def _row(row: Tensor, vector: Any) -> Tensor:
    """Σ_j row_j v_j for rows (S, n) and n vectors (S, P)."""
    total = row[:, :1] * vector[0]
    for j in range(1, len(vector)):
        total = torch.addcmul(total, row[:, j : j + 1], vector[j])
    return total

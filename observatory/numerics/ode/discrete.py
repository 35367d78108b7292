"""The gradient of the computed solution, with as few states in memory as wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from observatory.numerics.ode.explicit import State, Theta
from observatory.numerics.ode.field import Pull, Step
from observatory.numerics.ode.grid import Grid


@dataclass(frozen=True, eq=False)
class Sweep:
    """What an integration and its transposed one share."""

    grid: Grid
    step: Step
    pull: Pull
    snapshots: int  # states kept beside the first

    def march(self, y: State, theta: Theta, start: int, stop: int) -> State:
        for t, h in zip(
            self.grid.starts[start:stop].unbind(), self.grid.sizes[start:stop].unbind(), strict=True
        ):
            y = self.step(t, h, y, theta)
        return y


def split(start: int, stop: int, slots: int) -> int:
    """Where to keep the next state so that reversing steps start..stop, with the state at the start and
    `slots` more, repeats fewest steps.

    s = slots + 1 states and r repetitions reverse (s+r choose s) steps (Griewank and Walther, ACM TOMS 26, 19
    (2000)); the part before the split is repeated once more than the part behind it.
    """
    length, states, repetitions = stop - start, slots + 1, 1
    while math.comb(states + repetitions, states) < length:
        repetitions += 1
    return start + min(length - 1, math.comb(states + repetitions - 1, states))


def forward_sweep(sweep: Sweep, y: State, theta: Theta) -> tuple[list[State], dict[int, State]]:
    """The states at the wanted times, and those kept for the way back, by number of steps."""
    kept = {0: y}
    wanted, slots = set(sweep.grid.saves), sweep.snapshots
    keep = split(0, len(sweep.grid), slots) if len(sweep.grid) > 1 and slots else -1
    saved = [y]
    for k in range(1, len(sweep.grid) + 1):
        y = sweep.march(y, theta, k - 1, k)
        if k == keep:
            kept[k], slots = y, slots - 1
            keep = split(k, len(sweep.grid), slots) if len(sweep.grid) - k > 1 and slots else -1
        if k in wanted:
            saved.append(y)
    return saved, kept


def reverse_sweep(
    sweep: Sweep, kept: dict[int, State], theta: Theta, cotangents: list[State]
) -> tuple[State, dict[str, Tensor]]:
    """λᵀ∂/∂y(t₀) and λᵀ∂/∂θ of the states at the wanted times, λ given for each of them."""
    arriving = dict(zip(sweep.grid.saves, cotangents, strict=True))
    done = len(sweep.grid)
    # a view into the gradient of all times would be compiled for apart, for where it begins in memory
    cotangent = tree_map(torch.clone, arriving[done])
    slopes = {name: torch.zeros_like(value) for name, value in theta.items()}
    stack = [(0, sweep.snapshots)]  # states kept, nearest last, and the slots still free behind them
    while done:
        here, slots = stack[-1]
        if done - here > 1:
            there = split(here, done, slots)
            if there not in kept:
                kept[there] = sweep.march(kept[here], theta, here, there)
            stack.append((there, max(slots - 1, 0)))
            continue
        t, h = sweep.grid.starts[here], sweep.grid.sizes[here]
        y = kept.pop(here) if here else kept[0]
        cotangent, slopes = sweep.pull(t, h, y, theta, cotangent, slopes)
        done = here
        if here:
            stack.pop()
        if here in arriving:
            cotangent = tree_map(torch.add, cotangent, arriving[here])
    return cotangent, slopes


class _Reversed(torch.autograd.Function):
    """Initial state and θ, flat, to the states at the wanted times, each stacked."""

    @staticmethod
    def forward(
        ctx: Any, sweep: Sweep, names: tuple[str, ...], spec: TreeSpec, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        flat = tuple(
            tensor.detach() for tensor in flat
        )  # compiled code is specialised to what needs a gradient
        y, theta = tree_unflatten(list(flat[len(names) :]), spec), dict(zip(names, flat, strict=False))
        saved, kept = forward_sweep(sweep, y, theta)
        ctx.sweep, ctx.spec, ctx.theta, ctx.kept = sweep, spec, theta, kept
        return tuple(torch.stack(leaves) for leaves in zip(*(tree_flatten(s)[0] for s in saved), strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cotangents = [
            tree_unflatten(list(leaves), ctx.spec)
            for leaves in zip(*(g.contiguous().unbind() for g in gradients), strict=True)
        ]
        # a second backward over a retained graph starts from the same states
        initial, slopes = reverse_sweep(ctx.sweep, dict(ctx.kept), ctx.theta, cotangents)
        return (None, None, None, *slopes.values(), *tree_flatten(initial)[0])


def reversible(sweep: Sweep, y: State, theta: Theta) -> State:
    """The states at the wanted times, shape (T, ...); their gradient recomputes what was not kept."""
    leaves, spec = tree_flatten(y)
    return tree_unflatten(list(_Reversed.apply(sweep, tuple(theta), spec, *theta.values(), *leaves)), spec)

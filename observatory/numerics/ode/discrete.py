"""The gradient of the computed solution, with as few states in memory as wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from observatory.numerics.ode.compiled import Flat, Function
from observatory.numerics.ode.grid import Grid


@dataclass(frozen=True, eq=False)
class Sweep:
    """What an integration and its transposed one share."""

    grid: Grid
    step: Function  # (t, h, *θ, *y) -> y at t + h
    pull: Function  # (t, h, *θ, *y, *λ, *s) -> (*λᵀ∂y₊/∂y, *(s + λᵀ∂y₊/∂θ))
    snapshots: int  # states kept beside the first

    def march(self, y: Flat, theta: Flat, start: int, stop: int) -> Flat:
        for t, h in zip(self.starts[start:stop], self.sizes[start:stop], strict=True):
            y = self.step(t, h, *theta, *y)
        return y

    @cached_property
    def starts(self) -> Flat:
        return self.grid.starts.unbind()

    @cached_property
    def sizes(self) -> Flat:
        return self.grid.sizes.unbind()


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


def plain(sweep: Sweep, y: Flat, theta: Flat) -> Flat:
    """The states at the wanted times, shape (T, ...), of which autograd remembers everything."""
    saved = [y]
    for start, stop in pairwise(sweep.grid.saves):
        saved.append(sweep.march(saved[-1], theta, start, stop))
    return tuple(torch.stack(leaves) for leaves in zip(*saved, strict=True))


def forward_sweep(sweep: Sweep, y: Flat, theta: Flat) -> tuple[list[Flat], dict[int, Flat]]:
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
    sweep: Sweep, kept: dict[int, Flat], theta: Flat, cotangents: list[Flat]
) -> tuple[Flat, Flat]:
    """λᵀ∂/∂y(t₀) and λᵀ∂/∂θ of the states at the wanted times, λ given for each of them."""
    arriving = dict(zip(sweep.grid.saves, cotangents, strict=True))
    done = len(sweep.grid)
    # a view into the gradient of all times would be compiled for apart, for where it begins in memory
    cotangent = tuple(leaf.clone() for leaf in arriving[done])
    slopes = tuple(torch.zeros_like(value) for value in theta)
    stack = [(0, sweep.snapshots)]  # states kept, nearest last, and the slots still free behind them
    while done:
        here, free = stack[-1]
        if done - here > 1:
            there = split(here, done, free)
            if there not in kept:
                kept[there] = sweep.march(kept[here], theta, here, there)
            stack.append((there, max(free - 1, 0)))
            continue
        y = kept.pop(here) if here else kept[0]
        found = sweep.pull(sweep.starts[here], sweep.sizes[here], *theta, *y, *cotangent, *slopes)
        cotangent, slopes = found[: len(y)], found[len(y) :]
        done = here
        if here:
            stack.pop()
        if here in arriving:
            cotangent = tuple(a + b for a, b in zip(cotangent, arriving[here], strict=True))
    return cotangent, slopes


class _Reversed(torch.autograd.Function):
    """θ and the initial state to the states at the wanted times, each stacked."""

    @staticmethod
    def forward(ctx: Any, sweep: Sweep, parameters: int, *flat: Tensor) -> Flat:
        # compiled code is specialised to what needs a gradient
        flat = tuple(tensor.detach() for tensor in flat)
        ctx.sweep, ctx.theta = sweep, flat[:parameters]
        saved, ctx.kept = forward_sweep(sweep, flat[parameters:], ctx.theta)
        return tuple(torch.stack(leaves) for leaves in zip(*saved, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cotangents = list(zip(*(g.contiguous().unbind() for g in gradients), strict=True))
        # a second backward over a retained graph starts from the same states
        initial, slopes = reverse_sweep(ctx.sweep, dict(ctx.kept), ctx.theta, cotangents)
        return (None, None, *slopes, *initial)


def reversible(sweep: Sweep, y: Flat, theta: Flat) -> Flat:
    """The states at the wanted times, shape (T, ...); their gradient recomputes what was not kept."""
    found: Flat = _Reversed.apply(sweep, len(theta), *theta, *y)
    return found

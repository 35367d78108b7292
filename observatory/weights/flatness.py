"""How far one can walk until the loss has risen by a factor e."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.weights.lines import Lines


@dataclass(frozen=True)
class Flatness:
    """Widths of the loss profiles L_p(s) = L(θ₀ + s p) at e·L_p(0) (Feng, Tu 2021, PNAS 118 e2015617118)."""

    width: Tensor  # F = right - left, (k,), weight units; inf without a crossing on one side
    left: Tensor  # nearest crossing with s < 0, (k,); -inf without one
    right: Tensor  # nearest crossing with s > 0, (k,); inf without one
    loss: Tensor  # L₀ = L(θ₀), scalar


def quadratic_flatness(loss: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
    """F = 2 √(b² + 2κ(e - 1)L₀)/κ of L₀ + b s + ½κs², κ > 0; F → 0 with L₀: report κ as well. Shape (...)."""
    return 2 * (slope.square() + 2 * curvature * (math.e - 1) * loss).sqrt() / curvature


def flatness(
    lines: Lines,
    *,
    slopes: Tensor,
    curvature: Tensor,
    scale: Tensor,
    s_max: float = 1e3,
    rtol: float = 1e-3,
) -> Flatness:
    """Flatness of unit directions, all searched together.

    The next point to try is where a cubic with the known slope crosses that goes through the last two points
    (at first with the known curvature through one), within a bracket that every evaluation narrows. Two
    crossings within a factor 2 of each other are not told apart.

    Args:
        lines: through θ₀ along p_i.
        slopes: p_i·∇L(θ₀), (k,).
        curvature: p_iᵀHp_i, (k,).
        scale: σ_i, (k,): 10σ is tried first where the curvature does not predict a crossing.
        s_max: where to give up, in weight units.
        rtol: of the crossings.

    Returns:
        Each evaluation takes in 2k points; a handful are needed.

    Raises:
        ValueError: if the loss at θ₀ is not positive: then there is no factor e; use the curvature.
    """
    base = lines.landscape.value()
    if not bool(base > 0):
        raise ValueError(
            f"the flatness is undefined where the loss is {float(base):g}: it is the width at e times that "
            "loss; use the curvature instead"
        )
    search = _Search(slopes.double(), curvature.double(), scale.double(), (math.e - 1) * base, s_max, rtol)
    for _ in range(80):
        active = ~search.done.all(1)
        if not bool(active.any()):
            break
        rises = torch.full_like(search.s, torch.nan)
        rises[active] = lines.values(search.s[active] * search.sides, active) - base
        search.advance(rises)
    crossing = torch.where(search.found, search.s, torch.inf)
    left, right = -crossing[:, 0], crossing[:, 1]
    return Flatness(width=right - left, left=left, right=right, loss=base)


class _Search:
    """Looks for g(s) = L(s) - L₀ = rise on both sides of k directions, with s > 0 counted outwards."""

    def __init__(
        self, slope: Tensor, curvature: Tensor, scale: Tensor, rise: Tensor, s_max: float, rtol: float
    ) -> None:
        self.sides = torch.tensor([-1.0, 1.0], dtype=torch.float64, device=slope.device)
        self.slope = slope[:, None] * self.sides  # (k, 2)
        self.rise, self.s_max, self.rtol = rise, s_max, rtol
        # where the landscape bends down, its scale is still √(rise/|κ|)
        first = _crossing(self.slope, curvature.abs()[:, None].expand_as(self.slope), rise)
        fallback = (10 * scale).clamp_min(1e-6)[:, None].expand_as(self.slope)
        usable = first.isfinite() & (first > 0)
        self.first = self.s = torch.where(usable, first, fallback).clamp(max=s_max)
        self.low, self.high = torch.zeros_like(self.s), torch.full_like(self.s, torch.inf)
        bend = (curvature / 2)[:, None].expand_as(self.slope)
        self.last_move = torch.ones_like(self.s)  # of the step that led to s, relative
        self.previous = torch.zeros_like(self.s), bend  # (g - b s)/s² at the point before: κ/2 at 0
        self.done = torch.zeros_like(self.s, dtype=torch.bool)
        self.found = torch.zeros_like(self.done)

    def advance(self, g: Tensor) -> None:
        """Take in g(s), NaN where it was not evaluated, and choose the next points."""
        s, live = self.s, ~self.done & g.isfinite()
        overflow = ~self.done & ~g.isfinite()  # far out the loss itself may overflow: that is a crossing
        above = (g >= self.rise) | overflow
        self.high = torch.where(~self.done & above, s, self.high)
        self.low = torch.where(live & ~above, s, self.low)
        guess = self._guess(g)
        bracketed = self.high.isfinite()
        inside = (guess > self.low) & (guess < self.high)
        farther = torch.where(
            s > 8 * self.first, 4 * s, 2 * s
        )  # no crossing anywhere near: end the search soon
        outwards = torch.where(guess > s, torch.minimum(guess, 8 * s), farther)
        proposal = torch.where(bracketed, torch.where(inside, guess, (self.low + self.high) / 2), outwards)
        move = (proposal - s).abs() / s
        # what the cubic through the last two points misses is of the order of the product of their distances
        close = (move <= self.rtol / 2) | (move * self.last_move <= self.rtol / 10)
        self.last_move = torch.where(live, move, self.last_move)
        narrow = bracketed & (self.high - self.low <= self.rtol * self.high)
        settled = ~self.done & ((close & inside) | narrow)
        given_up = ~self.done & ~bracketed & (s >= self.s_max)
        bend = (g - self.slope * s) / s.square()
        self.previous = torch.where(live, s, self.previous[0]), torch.where(live, bend, self.previous[1])
        self.s = torch.where(self.done | given_up, s, proposal.clamp(max=self.s_max))
        self.found |= settled
        self.done |= settled | given_up

    def _guess(self, g: Tensor) -> Tensor:
        """Crossing of b s + a s² + c s³ through this point and the one before, or of a parabola through
        this.
        """
        s, (t, before) = self.s, self.previous
        here = (g - self.slope * s) / s.square()
        parabola = _crossing(self.slope, 2 * here, self.rise)
        c = (here - before) / (s - t)
        a = here - c * s
        x = parabola.clone()
        for _ in range(6):  # Newton's steps on the cubic cost nothing beside an evaluation
            x = x - (((c * x + a) * x + self.slope) * x - self.rise) / ((3 * c * x + 2 * a) * x + self.slope)
        good = x.isfinite() & (x > 0.5 * parabola) & (x < 2 * parabola)
        return torch.where(good, x, parabola)


def _crossing(slope: Tensor, curvature: Tensor, rise: Tensor) -> Tensor:
    """The positive root of b s + ½κs² = rise, in its stable form; NaN or inf where there is none."""
    root = (slope.square() + 2 * curvature * rise).sqrt()
    return torch.where(slope >= 0, 2 * rise / (slope + root), (root - slope) / curvature)

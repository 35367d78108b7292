"""How far one can walk until the loss has risen by a factor e."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.weights.landscape import Landscape


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
    landscape: Landscape,
    directions: Tensor,
    *,
    slopes: Tensor,
    curvature: Tensor,
    scale: Tensor,
    s_max: float = 1e3,
    rtol: float = 1e-3,
) -> Flatness:
    """Flatness of unit directions, all searched together.

    The next point to try is where the parabola through L₀, with the slope there and through the last point,
    crosses, within a bracket that every evaluation narrows; where the landscape is quadratic the first
    guess is right. Two crossings within a factor 2 of each other are not told apart.

    Args:
        landscape: about θ₀.
        directions: p_i, (k, P).
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
    base = landscape.value()
    if not bool(base > 0):
        raise ValueError(
            f"the flatness is undefined where the loss is {float(base):g}: it is the width at e times that "
            "loss; use the curvature instead"
        )
    sides = torch.tensor([-1.0, 1.0], dtype=torch.float64, device=base.device)
    slope = slopes.double()[:, None] * sides  # (k, 2)
    kappa = curvature.double()[:, None].expand_as(slope)
    rise = (math.e - 1) * base
    predicted = _crossing(slope, kappa, rise)
    fallback = (10 * scale.double()[:, None]).clamp(1e-6, s_max).expand_as(slope)
    s = torch.where(predicted.isfinite(), predicted, fallback).clamp(max=s_max)
    low, high = torch.zeros_like(s), torch.full_like(s, torch.inf)
    done = torch.zeros_like(s, dtype=torch.bool)
    for _ in range(60):
        active = ~done.all(1)
        if not bool(active.any()):
            break
        values = torch.full_like(s, torch.nan)
        values[active] = landscape.along(directions[active], s[active] * sides) - base
        above = values >= rise
        high = torch.where(~done & above, s, high)
        low = torch.where(~done & ~above & active[:, None], s, low)
        s, done = _next(s, values, slope, rise, low, high, done, s_max, rtol)
    crossing = torch.where(high.isfinite(), s, torch.inf)
    left, right = -crossing[:, 0], crossing[:, 1]
    return Flatness(width=right - left, left=left, right=right, loss=base)


def _crossing(slope: Tensor, curvature: Tensor, rise: Tensor) -> Tensor:
    """The positive root of b s + ½κs² = rise, NaN where there is none."""
    root = (slope.square() + 2 * curvature * rise).sqrt()
    # 2 rise/(b + √...) would be the stable form for b > 0, (√... - b)/κ the one for b < 0
    return torch.where(slope >= 0, 2 * rise / (slope + root), (root - slope) / curvature)


def _next(
    s: Tensor,
    values: Tensor,
    slope: Tensor,
    rise: Tensor,
    low: Tensor,
    high: Tensor,
    done: Tensor,
    s_max: float,
    rtol: float,
) -> tuple[Tensor, Tensor]:
    """The next point of each side, and which sides are found or given up."""
    curvature = 2 * (values - slope * s) / s.square()
    guess = _crossing(slope, curvature, rise)
    bracketed = high.isfinite()
    doubled = torch.where(
        guess > 2 * s, torch.minimum(guess, 8 * s), 2 * s
    )  # a longer step where one is predicted
    middle = (low + high) / 2
    inside = (guess > low) & (guess < high)
    proposal = torch.where(bracketed, torch.where(inside, guess, middle), doubled)
    settled = bracketed & (((proposal - s).abs() <= rtol / 2 * s) | ((high - low) <= rtol * high))
    given_up = ~bracketed & (s >= s_max)
    found = torch.where(done, s, torch.where(given_up, s, proposal.clamp(max=s_max)))
    return found, done | settled | given_up

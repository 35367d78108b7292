"""Positions in equilibrium: the distribution e^{-U/kT}, its cumulative integral and draws from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.physics.gle.potentials import FreeEnergy, Harmonic, Potential

POINTS = 20_001


@dataclass(frozen=True)
class Equilibrium:
    """p(x) ∝ e^{-U/kT} by the trapezoid rule on a regular grid that reaches 40 kT above the minimum."""

    x: Tensor  # grid, (points,)
    cumulative: Tensor  # ∫p from the first point to each, (points,), from 0 to 1

    @classmethod
    def of(cls, potential: Potential, kT: float, device: torch.device) -> Equilibrium | None:
        """None for a potential that does not confine."""
        if isinstance(potential, FreeEnergy):
            x: Tensor | None = potential.support(device)
        else:
            x = _support(potential, kT, device)
        if x is None:
            return None
        energy = potential.energy(x)
        weight = torch.exp((energy.min() - energy) / kT)
        cumulative = torch.cumulative_trapezoid(weight, x)
        return cls(x, torch.nn.functional.pad(cumulative / cumulative[-1], (1, 0)))

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Positions of this shape, float64."""
        x, cumulative = self.x, self.cumulative
        u = torch.rand(*shape, dtype=x.dtype, device=x.device, generator=generator)
        index = torch.searchsorted(cumulative[1:], u).clamp_max(len(x) - 2)
        below, above = cumulative[index], cumulative[index + 1]
        return x[index] + (u - below) / (above - below) * (x[index + 1] - x[index])


def positions_in_equilibrium(
    potential: Potential,
    kT: float,
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """Draws from e^{-U/kT}; zeros for a potential that does not confine."""
    if isinstance(potential, Harmonic):
        spread = math.sqrt(kT / potential.stiffness)
        return spread * torch.randn(*shape, dtype=torch.float64, device=device, generator=generator)
    equilibrium = Equilibrium.of(potential, kT, device)
    if equilibrium is None:
        return torch.zeros(shape, dtype=torch.float64, device=device)
    return equilibrium.draw(shape, generator)


def _support(potential: Potential, kT: float, device: torch.device) -> Tensor | None:
    """A grid over the places that are populated; None for a potential that does not confine."""
    width = torch.logspace(-6, 9, 400, dtype=torch.float64, device=device)
    wide = torch.cat([-width.flip(0), width.new_zeros(1), width])
    energy = potential.energy(wide)
    inside = (energy < energy.min() + 40 * kT).nonzero()[:, 0]
    low, high = int(inside.min()), int(inside.max())
    if low == 0 or high == len(wide) - 1:
        return None
    return torch.linspace(
        float(wide[low - 1]), float(wide[high + 1]), POINTS, dtype=torch.float64, device=device
    )

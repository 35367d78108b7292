"""What the extraction of a memory kernel returns."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from observatory.physics.gle.potentials import FreeEnergy, Potential

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Band:
    """Percentile interval from resampled blocks or trajectories."""

    low: Tensor
    high: Tensor
    error: Tensor  # standard error


@dataclass(frozen=True)
class MemoryKernel:
    """Kernel Γ and running friction G of m ẍ = -U'(x) - ∫Γ(s)ẋ(t-s)ds + F of data; (lags,), float64."""

    t: Tensor  # lags, from 0, unit of time
    G: Tensor  # ∫_0^t Γ, smoothed if asked for, mass/time
    G_raw: Tensor  # the same as solved
    Gamma: Tensor  # dG/dt, mass/time²; element 0 is Γ(0⁺)
    mass: Tensor  # kT/C_vv(0), scalar
    apparent_mass: Tensor  # C_xU'(0)/C_vv(0), scalar: what enters the equation
    free_energy: Potential
    dt: float
    kT: float
    correlations: dict[str, Tensor]  # C by name: vv, xf = ⟨x(0)U'(x(t))⟩, ...
    virial_ratio: Tensor  # ⟨xU'⟩/kT, 1 in equilibrium
    residual: Tensor  # of the equation of motion for C_vv with Γ put back, over its largest term, (lags,)
    G_band: Band | None = None
    Gamma_band: Band | None = None
    mass_band: Band | None = None
    notes: tuple[str, ...] = field(default=())  # what to keep in mind, in sentences

    @property
    def friction(self) -> Tensor:
        """Plateau of G: its mean over the last tenth; a lower bound of γ while G still rises."""
        return self.G[-max(1, len(self.G) // 10) :].mean()

    @property
    def memory_time(self) -> Tensor:
        """∫tΓ dt/∫Γ dt = ∫(1 - G/G(∞))dt, with the plateau for G(∞)."""
        return torch.trapezoid(1 - self.G / self.friction, dx=self.dt)

    @property
    def still_rising(self) -> bool:
        """Whether G grows by more than 5 % over the last quarter: the window is then too short for γ."""
        n = len(self.G)
        late, before = self.G[-n // 10 :].mean(), self.G[int(0.65 * n) : int(0.75 * n) + 1].mean()
        return bool(late > 1.05 * before)

    def save(self, path: str | os.PathLike[str]) -> None:
        """An .npz file of every array, readable without this package."""
        arrays = {
            name: getattr(self, name).cpu().numpy() for name in ("t", "G", "G_raw", "Gamma", "residual")
        }
        arrays |= {f"C_{name}": c.cpu().numpy() for name, c in self.correlations.items()}
        for name in ("G", "Gamma"):
            band = getattr(self, f"{name}_band")
            arrays |= (
                {} if band is None else {f"{name}_low": band.low.numpy(), f"{name}_high": band.high.numpy()}
            )
        if isinstance(self.free_energy, FreeEnergy):
            arrays |= {name: getattr(self.free_energy, name).cpu().numpy() for name in ("x", "U")}
        scalars = {name: float(getattr(self, name)) for name in ("mass", "apparent_mass", "dt", "kT")}
        np.savez(path, **arrays, **scalars)  # type: ignore[arg-type]

    def plot(self) -> Figure:
        """Γ, G with its band, C_vv and U on one figure."""
        from observatory.physics.gle.figures import overview

        return overview(self)

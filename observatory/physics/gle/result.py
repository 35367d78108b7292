"""What the extraction of a memory kernel returns."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from observatory.physics.gle.direct_fit import KernelFit, fit_exponentials
from observatory.physics.gle.potentials import GRID, FreeEnergy, Potential

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_ARRAYS = ("t", "G", "G_raw", "Gamma", "mass", "apparent_mass")
_TABLE = ("x", "U", "slope", "knots", "counts")


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
    reach: tuple[float, float] = (-2.0, 2.0)  # smallest and largest position
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

    def fit(self, terms: int, *, cosines: int = 0) -> KernelFit:
        """Exponentials and damped cosines through G, see `fit_exponentials`."""
        return fit_exponentials(self.t, self.G, terms, cosines=cosines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """An .npz file of every array, readable without this package."""
        np.savez(path, **{name: value.numpy() for name, value in self.arrays().items()})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MemoryKernel:
        """What `save` wrote; a potential other than the free energy of the data comes back as its table."""
        with np.load(path) as stored:
            return kernel_of_arrays({name: torch.from_numpy(stored[name]) for name in stored.files})

    def arrays(self) -> dict[str, Tensor]:
        """Every number of the result by name, float64; what `load` reads."""
        found = {name: getattr(self, name) for name in (*_ARRAYS, "virial_ratio", "residual")}
        found |= {f"C_{name}": c for name, c in self.correlations.items()}
        for name in ("G", "Gamma", "mass"):
            band = getattr(self, f"{name}_band")
            if band is not None:
                found |= {f"{name}_{part}": getattr(band, part) for part in ("low", "high", "error")}
        table = self.free_energy
        if not isinstance(table, FreeEnergy):
            x = torch.linspace(*self.reach, GRID, dtype=torch.float64)
            table = FreeEnergy(x, table.energy(x), table.gradient(x), x[:0], x[:0])
        found |= {name: getattr(table, name) for name in _TABLE}
        found["period"] = torch.tensor(torch.nan if table.period is None else table.period)
        found |= {name: torch.tensor(getattr(self, name)) for name in ("dt", "kT")}
        return {name: torch.as_tensor(value).detach().cpu().double() for name, value in found.items()}

    def plot(self) -> Figure:
        """Γ, G with its band, C_vv and U on one figure."""
        from observatory.physics.gle.figures import overview

        return overview(self)


def kernel_of_arrays(arrays: Mapping[str, Tensor]) -> MemoryKernel:
    """The result whose `arrays` these are."""

    def band(name: str) -> Band | None:
        if f"{name}_low" not in arrays:
            return None
        return Band(arrays[f"{name}_low"], arrays[f"{name}_high"], arrays[f"{name}_error"])

    period = float(arrays["period"])
    x, U, slope, knots, counts = (arrays[name] for name in _TABLE)
    return MemoryKernel(
        arrays["t"],
        arrays["G"],
        arrays["G_raw"],
        arrays["Gamma"],
        arrays["mass"],
        arrays["apparent_mass"],
        FreeEnergy(x, U, slope, knots, counts, None if math.isnan(period) else period),
        float(arrays["dt"]),
        float(arrays["kT"]),
        {name[2:]: value for name, value in arrays.items() if name.startswith("C_")},
        arrays["virial_ratio"],
        arrays["residual"],
        band("G"),
        band("Gamma"),
        band("mass"),
        (float(x[0]), float(x[-1])),
    )

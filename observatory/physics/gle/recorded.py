"""The extraction of a memory kernel as a method of the one loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from observatory.physics.gle.direct_fit import KernelFit
from observatory.physics.gle.estimators import positions_of
from observatory.physics.gle.extraction import extract_kernel
from observatory.physics.gle.force import random_force
from observatory.physics.gle.kernels import exponential_kernel
from observatory.physics.gle.potentials import Potential
from observatory.physics.gle.result import MemoryKernel, kernel_of_arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORCE_LAGS = 200  # of the correlation of the random force


class RecordedKernel(nn.Module):
    """Memory kernel, exponential fit and random force of one batch of recorded trajectories.

    `advance` takes (P, N) or (P, N, 1), all trajectories at once, and keeps what it finds, so that
    checkpoints hold it. `Iterate` calls it; `kernel`, `fit` and `force` read it.

    Args:
        dt: Δt of the data.
        kT: thermal energy.
        lags: of the kernel, from 0, counted in steps of `thin` Δt.
        thin: take every `thin`-th point.
        potential: U, or the free energy of the data.
        bins: of the histogram behind the free energy.
        terms: exponentials fitted to G.
        cosines: damped cosines fitted to G, for kernels that become negative.
        resamples: for the bands.
        seed: of the resamples.
    """

    def __init__(
        self,
        dt: float,
        kT: float,
        lags: int,
        *,
        thin: int = 1,
        potential: Potential | Literal["free_energy"] = "free_energy",
        bins: int = 100,
        terms: int = 2,
        cosines: int = 0,
        resamples: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if thin < 1:
            raise ValueError(f"thin must be at least 1, got {thin}")
        self.dt, self.kT, self.lags, self.thin, self.potential = dt, kT, lags, thin, potential
        self.bins, self.terms, self.cosines = bins, terms, cosines
        self.resamples, self.seed = resamples, seed
        self._found: dict[str, Tensor] = {}

    def advance(self, batch: Tensor | tuple[Tensor, ...]) -> dict[str, float]:
        """Extract the kernel; its numbers by name."""
        x = positions_of(batch)[:, :: self.thin]
        dt = self.dt * self.thin
        kernel = extract_kernel(
            x,
            dt,
            self.kT,
            n_lags=self.lags,
            potential=self.potential,
            bins=self.bins,
            resamples=self.resamples,
            generator=torch.Generator().manual_seed(self.seed),
        )
        fit = kernel.fit(self.terms, cosines=self.cosines)
        self._found = kernel.arrays() | {
            "fit_gamma": fit.kernel.gamma.cpu(),
            "fit_tau": fit.kernel.tau.cpu(),
            "fit_cosines": fit.kernel.cosines.cpu(),
            "fit_log_error": fit.log_error,
            "fit_residual": torch.tensor(fit.residual, dtype=torch.float64),
        }
        if x.shape[-1] > 2 * self.lags:
            force = random_force(x, kernel.G, dt, self.kT, kernel.free_energy, kernel.apparent_mass)
            self._found["force_autocorrelation"] = force.autocorrelation[:FORCE_LAGS].cpu()
            self._found["force_kurtosis"] = force.excess_kurtosis.cpu()
        return _summary(kernel, fit)

    def get_extra_state(self) -> dict[str, Tensor]:
        return self._found

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self._found = dict(state)

    @property
    def kernel(self) -> MemoryKernel:
        """What was extracted.

        Raises:
            ValueError: before the first batch.
        """
        return recorded_kernel(self._found)

    def figures(self) -> dict[str, Figure]:
        """What TensorBoard shows."""
        from observatory.physics.gle.figures import overview

        return {"memory_kernel": overview(self.kernel, fit=recorded_fit(self._found).kernel)}


def _summary(kernel: MemoryKernel, fit: KernelFit) -> dict[str, float]:
    return {
        "friction": float(kernel.friction),
        "memory_time": float(kernel.memory_time),
        "mass": float(kernel.mass),
        "apparent_mass": float(kernel.apparent_mass),
        "virial_ratio": float(kernel.virial_ratio),
        "fit_friction": float(fit.kernel.friction()),
        "fit_memory_time": float(fit.kernel.memory_time()),
        "fit_residual": fit.residual,
    }


def recorded_kernel(found: Mapping[str, Tensor]) -> MemoryKernel:
    """The extraction in a checkpoint's extra state.

    Raises:
        ValueError: if it holds none.
    """
    if "G" not in found:
        raise ValueError("no trajectories have been seen yet: there is no kernel")
    return kernel_of_arrays(found)


def recorded_fit(found: Mapping[str, Tensor]) -> KernelFit:
    """The exponential fit in a checkpoint's extra state."""
    kernel = exponential_kernel(found["fit_gamma"], found["fit_tau"], cosines=found["fit_cosines"])
    return KernelFit(kernel, found["fit_log_error"], float(found["fit_residual"]))

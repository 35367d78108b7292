"""The recording repeated in simulation: trajectories of other parameters, seen as the data were."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.physics.gle.kernels import kernel_of_logarithms
from observatory.physics.gle.matching import matched_correlations
from observatory.physics.gle.modes import Modes, embedded_modes
from observatory.physics.gle.moments import moments
from observatory.physics.gle.particle import Particle
from observatory.physics.gle.potentials import Potential


@dataclass(frozen=True)
class Repeating:
    """How a simulation is observed, whatever its parameters (ln m, ln γᵢ, ln τᵢ, ln aⱼ, ln σⱼ, ln ωⱼ)."""

    potential: Potential  # U
    terms: int  # n
    kT: float
    dt: float  # Δt of the data
    step: float  # of the integrator, at most
    samples: int  # points of each trajectory

    def particle(self, theta: Tensor) -> Particle:
        """Of logarithms (..., p)."""
        kernel = kernel_of_logarithms(theta[..., 1:], self.terms)
        return Particle(kernel, self.potential, theta[..., 0].exp(), self.kT)

    def positions(self, theta: Tensor, lanes: int, seed: int, *, common: bool) -> Tensor:
        """Of logarithms (S, p): (S, lanes, samples), float32; `common` sets hear the same random numbers."""
        return self.particle(theta).observed(
            self.dt,
            step=self.step,
            samples=self.samples,
            lanes=lanes,
            dtype=torch.float32,
            generator=torch.Generator(theta.device).manual_seed(seed),
            common_noise=common,
        )

    def correlations(self, theta: Tensor, lags: int, lanes: int, seed: int, *, common: bool) -> Tensor:
        """C_vv, C_xx and C_xU' of logarithms (S, p): (S, 3, lags)."""
        x = self.positions(theta, lanes, seed, common=common)
        return matched_correlations(x, self.dt, self.potential.gradient, lags)

    def moments(self, theta: Tensor, lags: Tensor, lanes: int, seed: int) -> Tensor:
        """Of logarithms (S, p), with common random numbers: (S, lanes, q)."""
        x = self.positions(theta, lanes, seed, common=True)
        return torch.stack([moments(one, self.potential, lags) for one in x])  # all at once is too large

    def modes(self, theta: Tensor) -> Modes:
        """Of logarithms (3,) of one exponential: m, γ, τ.

        Raises:
            ValueError: if U does not confine.
        """
        mass, gamma, tau = theta.exp().tolist()
        return embedded_modes(self.potential, mass=mass, gamma=gamma, tau=tau, kT=self.kT)

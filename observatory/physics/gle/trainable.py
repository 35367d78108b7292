"""The generalised Langevin equation as a module whose parameters are trained through its simulation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from observatory.physics.gle.estimators import positions_of
from observatory.physics.gle.kernels import ExponentialKernel
from observatory.physics.gle.matching import matched_correlations, mismatch
from observatory.physics.gle.potentials import Potential
from observatory.physics.gle.simulation import simulate


class SimulatedGLE(nn.Module):
    """m ẍ = -U'(x) - ∫Γ(s)ẋ(t-s)ds + F with trainable ln m, ln γᵢ, ln τᵢ in any U, observed at steps Δt.

    The loss is the mismatch of C_vv, C_xx and C_xU' between data and simulation; the same random numbers are
    heard at every step of the training, and gradients flow through the integrator, at most `horizon` steps
    back. It polishes what `SimulationFit` has found: a gradient that is cut, of one realisation of the noise,
    is no way to begin. In a harmonic well `HarmonicGLE` needs no simulation.

    Args:
        dt: Δt.
        kT: thermal energy.
        potential: U.
        mass: initial m.
        gamma: initial γᵢ.
        tau: initial τᵢ.
        stride: steps of the integrator in Δt.
        lags: of the correlations.
        lanes: particles.
        samples: points of each.
        horizon: steps of the integrator through which gradients flow; default all.
        seed: of the noise.
    """

    def __init__(
        self,
        dt: float,
        kT: float,
        potential: Potential,
        mass: float,
        gamma: Sequence[float],
        tau: Sequence[float],
        *,
        stride: int = 1,
        lags: int = 20,
        lanes: int = 256,
        samples: int = 60,
        horizon: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(gamma) != len(tau) or min(dt, kT, mass, *gamma, *tau) <= 0 or not 3 <= lags < samples:
            raise ValueError(
                f"numbers are positive, every γ has its τ, and 3 ≤ lags < samples; got dt={dt:g}, kT={kT:g}, "
                f"mass={mass:g}, gamma={tuple(gamma)}, tau={tuple(tau)}, lags={lags}, samples={samples}"
            )
        self.dt, self.kT, self.potential, self.stride = dt, kT, potential, stride
        self.lags, self.lanes, self.samples, self.seed = lags, lanes, samples, seed
        self.horizon = samples * stride if horizon is None else horizon
        self.log_mass, self.log_gamma, self.log_tau = (
            nn.Parameter(torch.tensor(values, dtype=torch.float64).log()) for values in (mass, gamma, tau)
        )

    @property
    def kernel(self) -> ExponentialKernel:
        empty = self.log_gamma.new_zeros(0)
        zero = self.log_gamma.new_zeros(())
        return ExponentialKernel(self.log_gamma.exp(), self.log_tau.exp(), zero, empty, empty, empty)

    @property
    def mass(self) -> Tensor:
        return self.log_mass.exp()

    def correlations(self) -> Tensor:
        """C_vv, C_xx, C_xU' of the simulation, (3, lags), differentiable."""
        x = simulate(
            self.kernel,
            self.potential,
            mass=self.mass,
            kT=self.kT,
            step=self.dt / self.stride,
            samples=self.samples,
            lanes=self.lanes,
            stride=self.stride,
            generator=torch.Generator(self.log_mass.device).manual_seed(self.seed),
            most=self.horizon,
        )
        return matched_correlations(x, self.dt, self.potential.gradient, self.lags)

    def training_loss(self, batch: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Of positions (P, N) or (P, N, 1)."""
        target = matched_correlations(positions_of(batch), self.dt, self.potential.gradient, self.lags)
        return mismatch(self.correlations(), target)

    def validation_metrics(self, batch: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The loss on other data, and what has been found."""
        kernel = self.kernel
        found = {"friction": kernel.friction(), "memory_time": kernel.memory_time(), "mass": self.mass}
        return {"loss": self.training_loss(batch), **found}

"""The generalised Langevin equation as a module whose parameters are trained through its simulation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from observatory.physics.gle.estimators import positions_of
from observatory.physics.gle.matching import matched_correlations, mismatch
from observatory.physics.gle.parameters import Batch, KernelParameters
from observatory.physics.gle.particle import Particle
from observatory.physics.gle.potentials import Potential
from observatory.physics.gle.spline_potential import SplinePotential


class SimulatedGLE(KernelParameters):
    """m ẍ = -U'(x) - ∫Γ(s)ẋ(t-s)ds + F with trainable ln m, ln γᵢ, ln τᵢ in any U, observed at steps Δt.

    The loss is the mismatch of C_vv, C_xx and C_xU' between data and simulation; the same random numbers are
    heard at every step of the training, and gradients flow through the integrator, at most `horizon` steps
    back. It polishes what `SimulationFit` has found: a gradient that is cut, of one realisation of the noise,
    is no way to begin. In a harmonic well `HarmonicGLE` needs no simulation.

    A `SplinePotential` is trained too. C_xU' would then compare two free energies that are not yet right, so
    the positions themselves speak for U: minus the mean logarithm of e^{-U/kT}/∫e^{-U/kT} at the data.

    Args:
        dt: Δt.
        kT: thermal energy.
        potential: U.
        mass: initial m.
        gamma: initial γᵢ.
        tau: initial τᵢ.
        cosines: initial (a, σ, ω) of damped cosines.
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
        cosines: Sequence[tuple[float, float, float]] = (),
        stride: int = 1,
        lags: int = 20,
        lanes: int = 256,
        samples: int = 60,
        horizon: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(mass, gamma, tau, cosines)
        if min(dt, kT) <= 0 or not 3 <= lags < samples:
            raise ValueError(
                f"dt and kT are positive, and 3 ≤ lags < samples; got dt={dt:g}, kT={kT:g}, lags={lags}, "
                f"samples={samples}"
            )
        self.dt, self.kT, self.potential, self.stride = dt, kT, potential, stride
        self.lags, self.lanes, self.samples, self.seed = lags, lanes, samples, seed
        self.horizon = samples * stride if horizon is None else horizon

    @property
    def particle(self) -> Particle:
        """What has been learnt, to be simulated or saved."""
        return Particle(self.kernel, self.potential, self.mass, self.kT)

    def correlations(self) -> Tensor:
        """C_vv, C_xx, C_xU' of the simulation, (3, lags), differentiable."""
        x = self.particle.observed(
            self.dt,
            step=self.dt / self.stride,
            samples=self.samples,
            lanes=self.lanes,
            generator=torch.Generator(self.log_mass.device).manual_seed(self.seed),
            most=self.horizon,
        )
        return matched_correlations(x, self.dt, self.potential.gradient, self.lags)

    def training_loss(self, batch: Batch) -> Tensor:
        """Of positions (P, N) or (P, N, 1)."""
        x = positions_of(batch)
        target = matched_correlations(x, self.dt, self.potential.gradient, self.lags)
        if isinstance(self.potential, SplinePotential):
            return mismatch(self.correlations()[:2], target[:2]) + self.potential.surprise(x, self.kT)
        return mismatch(self.correlations(), target)

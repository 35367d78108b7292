"""Trajectories of a particle with memory, simulated: data whose kernel is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from observatory.data.loading import training_loader
from observatory.data.recordings import TrajectorySet
from observatory.physics.gle import Particle, exponential_kernel
from observatory.physics.gle.potentials import Potential


class LangevinTrajectories(LightningDataModule):
    """m ẍ = -U'(x) - ∫Γ(s)ẋ(t-s)ds + F with Γ = 2γ₀δ + Σ(γᵢ/τᵢ)e^{-t/τᵢ} + cosines, every Δt.

    A batch is a list with all trajectories, (P, N, 1); after `setup` they are in `train`.

    Args:
        potential: U.
        gamma: γᵢ.
        tau: τᵢ.
        instantaneous: γ₀.
        cosines: (a, σ, ω) of each damped cosine, see `ExponentialKernel`.
        mass: m.
        kT: thermal energy.
        dt: Δt.
        step: of the integration, at most; Δt is divided by a whole number.
        samples: N.
        lanes: P.
        seed: of the noise.
    """

    train: TrajectorySet

    def __init__(
        self,
        potential: Potential,
        gamma: Sequence[float],
        tau: Sequence[float],
        instantaneous: float = 0.0,
        cosines: Sequence[tuple[float, float, float]] = (),
        mass: float = 1.0,
        kT: float = 1.0,
        dt: float = 0.01,
        step: float = 0.01,
        samples: int = 100_000,
        lanes: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        kernel = exponential_kernel(
            tuple(gamma), tuple(tau), instantaneous=instantaneous, cosines=list(cosines)
        )
        if min(mass, kT, dt, step, samples, lanes) <= 0:
            raise ValueError(
                f"mass={mass:g}, kT={kT:g}, dt={dt:g}, step={step:g}, samples={samples} and lanes={lanes} "
                "must be positive"
            )
        self.particle = Particle(kernel, potential, mass, kT)
        self.dt, self.step, self.samples, self.lanes, self.seed = dt, step, samples, lanes, seed

    def setup(self, stage: str) -> None:
        if hasattr(self, "train"):
            return
        x = self.particle.observed(
            self.dt,
            step=self.step,
            samples=self.samples,
            lanes=self.lanes,
            generator=torch.Generator().manual_seed(self.seed),
        )
        self.train = TrajectorySet(x[..., None], self.dt, ("x",))

    def train_dataloader(self) -> DataLoader:
        return training_loader(TensorDataset(self.train.x), self.lanes, shuffle=False)

"""Memory kernels of time series: the generalised Langevin equation, extracted, simulated and fitted.

m ẍ(t) = -U'(x) - ∫_0^t Γ(s) ẋ(t-s) ds + F(t), ⟨F(0)F(t)⟩ = kT Γ(t). (Zwanzig, Nonequilibrium Statistical
Mechanics, 2001; Tepper, Dalton, Netz, J. Chem. Theory Comput. 20, 3061 (2024), arXiv:2401.09249.)
"""

from observatory.physics.gle.barrier import (
    PassageTime,
    first_passage_time,
    grote_hynes_rate,
    overdamped_passage_time,
    passage_time,
)
from observatory.physics.gle.direct_fit import KernelFit, fit_exponentials
from observatory.physics.gle.embedding import propagator
from observatory.physics.gle.extraction import extract_kernel
from observatory.physics.gle.force import RandomForce, random_force
from observatory.physics.gle.inversion import invert_correlations, kernel_of_correlations
from observatory.physics.gle.kernels import ExponentialKernel, exponential_kernel
from observatory.physics.gle.likelihood import WhittleFit, whittle_fit
from observatory.physics.gle.linear import HarmonicGLE
from observatory.physics.gle.particle import Particle
from observatory.physics.gle.potentials import DoubleWell, Flat, FreeEnergy, Harmonic, free_energy
from observatory.physics.gle.recorded import RecordedKernel
from observatory.physics.gle.result import MemoryKernel
from observatory.physics.gle.simulation import simulate
from observatory.physics.gle.simulation_fit import SimulationFit
from observatory.physics.gle.spline_potential import SplinePotential
from observatory.physics.gle.trainable import SimulatedGLE

__all__ = [
    "DoubleWell",
    "ExponentialKernel",
    "Flat",
    "FreeEnergy",
    "Harmonic",
    "HarmonicGLE",
    "KernelFit",
    "MemoryKernel",
    "Particle",
    "PassageTime",
    "RandomForce",
    "RecordedKernel",
    "SimulatedGLE",
    "SimulationFit",
    "SplinePotential",
    "WhittleFit",
    "exponential_kernel",
    "extract_kernel",
    "first_passage_time",
    "fit_exponentials",
    "free_energy",
    "grote_hynes_rate",
    "invert_correlations",
    "kernel_of_correlations",
    "overdamped_passage_time",
    "passage_time",
    "propagator",
    "random_force",
    "simulate",
    "whittle_fit",
]

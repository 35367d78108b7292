"""Memory kernels of time series: the generalised Langevin equation, extracted, simulated and fitted.

m ẍ(t) = -U'(x) - ∫_0^t Γ(s) ẋ(t-s) ds + F(t), ⟨F(0)F(t)⟩ = kT Γ(t). (Zwanzig, Nonequilibrium Statistical
Mechanics, 2001; Tepper, Dalton, Netz, J. Chem. Theory Comput. 20, 3061 (2024), arXiv:2401.09249.)
"""

from observatory.physics.gle.extraction import extract_kernel, kernel_of_correlations
from observatory.physics.gle.kernels import ExponentialKernel, exponential_kernel
from observatory.physics.gle.linear import HarmonicGLE
from observatory.physics.gle.potentials import DoubleWell, Flat, FreeEnergy, Harmonic, free_energy
from observatory.physics.gle.result import MemoryKernel
from observatory.physics.gle.simulation import propagator, simulate

__all__ = [
    "DoubleWell",
    "ExponentialKernel",
    "Flat",
    "FreeEnergy",
    "Harmonic",
    "HarmonicGLE",
    "MemoryKernel",
    "exponential_kernel",
    "extract_kernel",
    "free_energy",
    "kernel_of_correlations",
    "propagator",
    "simulate",
]

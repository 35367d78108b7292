"""The Markovian embedding of a memory kernel: auxiliary forces, and a step that is exact for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.physics.gle.kernels import ExponentialKernel


def generator_matrix(kernel: ExponentialKernel, mass: Tensor) -> Tensor:
    """A of dz = A z dt + noise with stationary covariance 1, for the velocity and the auxiliary forces.

    The variables are v/√(kT/m), fᵢ/√(kTγᵢ/τᵢ) and (f, p)/√(kTa)/(1, Ω) of each damped cosine, Ω² = ω² + 1/σ²:
    in these A is an antisymmetric coupling plus the damping, with no singular limit.

    Returns:
        Shape (..., d, d), d = 1 + n + 2c.
    """
    n, c = kernel.gamma.shape[-1], kernel.amplitude.shape[-1]
    lead = torch.broadcast_shapes(kernel.gamma.shape[:-1], mass.shape)
    A = torch.zeros(*lead, 1 + n + 2 * c, 1 + n + 2 * c, dtype=torch.float64, device=kernel.gamma.device)
    force = torch.cat([kernel.gamma / kernel.tau, kernel.amplitude], -1) / mass[..., None]
    coupling = _safe_sqrt(force)  # √(⟨f²⟩/(m²⟨v²⟩))
    damping = [(kernel.instantaneous / mass)[..., None], 1 / kernel.tau]
    damping += [torch.zeros_like(kernel.decay), 2 / kernel.decay]
    rotation = (kernel.frequency**2 + kernel.decay**-2).sqrt()
    f, p = slice(1, 1 + n + c), slice(1 + n + c, None)
    A = A - torch.diag_embed(torch.cat([d.expand(*lead, -1) for d in damping], -1))
    A = A.clone()
    A[..., 0, f] = coupling
    A[..., f, 0] = -coupling
    waves = torch.diag_embed(rotation.expand(*lead, -1))
    A[..., 1 + n : 1 + n + c, p] = waves
    A[..., p, 1 + n : 1 + n + c] = -waves
    return A


def _safe_sqrt(x: Tensor) -> Tensor:
    """√x whose slope at 0 is 0: a term of no strength couples to nothing."""
    return torch.where(x > 0, x, 1.0).sqrt() * (x > 0)


@dataclass(frozen=True)
class Propagator:
    """One step: kick -hU'(x) of the velocity, then y ← M y + R ξ of y = (x, z), the rest of the step.

    Between two evaluations of the force lie half a drift, the exact Ornstein-Uhlenbeck motion of (v, f) and
    half a drift, all linear. For a harmonic U the sampled ⟨x²⟩ is exact at every stable step.
    """

    M: Tensor  # (..., d+1, d+1)
    R: Tensor  # (..., d+1, d)
    kick: Tensor  # (...): change of v/√(kT/m) in a whole kick per unit of -U'
    speed: Tensor  # (...), √(kT/m)


def propagator(kernel: ExponentialKernel, mass: Tensor | float, kT: float, step: float) -> Propagator:
    """Matrices of a step h; leading dimensions are parameter sets. No limit on h comes from the τᵢ."""
    m = torch.as_tensor(mass, dtype=torch.float64, device=kernel.gamma.device)
    E = torch.linalg.matrix_exp(generator_matrix(kernel, m) * step)
    d = E.shape[-1]
    eye = torch.eye(d, dtype=E.dtype, device=E.device)
    L = torch.linalg.cholesky(eye * (1 + 1e-14) - E @ E.mT)
    speed = (kT / m).sqrt().expand(E.shape[:-2])
    drift = torch.eye(d + 1, dtype=E.dtype, device=E.device).repeat(*E.shape[:-2], 1, 1)
    drift[..., 0, 1] = speed * step / 2
    lifted = torch.eye(d + 1, dtype=E.dtype, device=E.device).repeat(*E.shape[:-2], 1, 1)
    lifted[..., 1:, 1:] = E
    noise = torch.nn.functional.pad(L, (0, 0, 1, 0))
    return Propagator(
        drift @ lifted @ drift, drift @ noise, step / (m * kT).sqrt().expand(E.shape[:-2]), speed
    )

"""Broken detailed balance: circulation in weight space.

In units of ηt, dδ = -Hδ dt + √(2D) dW with D = ηC_S/2 and HΣ + ΣH = 2D. The antisymmetric Q = HΣ - D turns
the stationary state; it vanishes if and only if H and D commute. (Adhikari et al. 2023, arXiv:2306.03521;
Chaudhari, Soatto 2018, arXiv:1710.11029.)
"""

from __future__ import annotations

import torch
from torch import Tensor


def circulation(hessian: Tensor, covariance: Tensor) -> Tensor:
    """Q = (HΣ - ΣH)/2, exact for discrete steps too. Shapes (..., k, k)."""
    product = hessian @ covariance
    return (product - product.mT) / 2


def observed_circulation(positions: Tensor, *, learning_rate: float, every: int = 1) -> Tensor:
    """Q̂ = -(A - Aᵀ)/(2η), A = ⟨δ_{t+1}δ_tᵀ⟩, from a trajectory.

    Args:
        positions: δ_t in k directions, (..., T, k).
        learning_rate: η; η/(1 - β) under momentum.
        every: steps between snapshots; the result is exact for one and of first order in η·every beyond.

    Returns:
        Shape (..., k, k).
    """
    centred = positions.double() - positions.double().mean(-2, keepdim=True)
    lagged = centred[..., 1:, :].mT @ centred[..., :-1, :] / (centred.shape[-2] - 1)
    return circulation_of_lagged(lagged, learning_rate=learning_rate * every)


def circulation_of_lagged(lagged: Tensor, *, learning_rate: float) -> Tensor:
    """-(A - Aᵀ)/(2η) from A = ⟨δ_{t+1}δ_tᵀ⟩, (..., k, k)."""
    return -(lagged - lagged.mT) / (2 * learning_rate)


def entropy_production(diffusion: Tensor, circulation: Tensor, covariance: Tensor) -> Tensor:
    """Π = Tr(QᵀD⁻¹QΣ⁻¹) ≥ 0 per unit of ηt, shape (...). With Q = HΣ - D it equals -Tr(D⁻¹HQ).

    Args:
        diffusion: D = ηC_S/2, positive definite, (..., k, k).
        circulation: Q, antisymmetric, (..., k, k).
        covariance: Σ, positive definite, (..., k, k).
    """
    left = torch.linalg.solve(diffusion, circulation)
    right = torch.linalg.solve(covariance, circulation.mT)  # Tr(QᵀXQΣ⁻¹) = Tr(XQ Σ⁻¹Qᵀ)
    return (left * right.mT).sum((-2, -1))


def rotation_frequency(circulation: Tensor, covariance: Tensor) -> Tensor:
    """Fastest rotation max |Im eig(QΣ⁻¹)|, radians per unit of ηt, shape (...)."""
    # Σ^(-1/2) Q Σ^(-1/2) has the same eigenvalues and is antisymmetric: i times it is Hermitian
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors / values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()[..., None, :]
    turned = root.mT @ circulation @ root
    return torch.linalg.eigvalsh(1j * turned).abs().amax(-1)


def commutator_ratio(hessian: Tensor, noise: Tensor) -> Tensor:
    """‖HC - CH‖/‖HC‖, 0 if noise and curvature share their axes. Shape (...)."""
    product = hessian @ noise
    return torch.linalg.matrix_norm(product - product.mT) / torch.linalg.matrix_norm(product)

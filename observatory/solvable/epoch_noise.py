"""SGD with momentum in a quadratic well under the noise of an epoch-wise reshuffled data loader.

The batches of one epoch add up to the whole data set, so that their gradient noises add up to zero: the noise
is anti-correlated in time, and flat directions, which average over whole epochs, hardly feel it.

Conventions: one direction of curvature h, v ← βv + g, θ ← θ - ηv, g = hδ + ξ, ⟨ξ²⟩ = V, M batches per epoch.
Everything is float64; arguments broadcast, leading dimensions are ensembles. (Kühn, Rosenow 2023,
arXiv:2306.05300.)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def batch_noise_autocovariance(batches: int, *, variance: float = 1.0) -> Tensor:
    """R(l) of the gradient noise for l = 0 ... M, averaged over the phase within the epoch.

    R(0) = V, R(l) = -V (M - l)/(M (M - 1)) for 1 ≤ l < M, zero beyond.

    Returns:
        Shape (M + 1,).
    """
    lag = torch.arange(batches + 1, dtype=torch.float64)
    autocovariance = -variance * (batches - lag) / (batches * max(batches - 1, 1))
    autocovariance[0] = variance if batches > 1 else 0.0
    return autocovariance


def white_noise_variance(
    curvature: Tensor, *, learning_rate: float, momentum: float = 0.0, noise: Tensor | float = 1.0
) -> Tensor:
    """σ² = ηV(1 + β)/((1 - β) h (2(1 + β) - ηh)) for noise that is independent from step to step.

    (Liu, Ziyin, Ueda 2021, arXiv:2012.03636.) Shape of `curvature`; inf where not 0 < ηh < 2(1 + β).
    """
    h = curvature.double()
    step = learning_rate * h
    variance = learning_rate * noise * (1 + momentum) / ((1 - momentum) * h * (2 * (1 + momentum) - step))
    return torch.where((step > 0) & (step < 2 * (1 + momentum)), variance, torch.inf)


def epoch_noise_variance(
    curvature: Tensor,
    *,
    learning_rate: float,
    batches: int,
    momentum: float = 0.0,
    noise: Tensor | float = 1.0,
) -> Tensor:
    """σ² = V·[G(0) - (2/(M(M-1))) Σ_{l=1}^{M-1} (M - l) G(l)] under reshuffling, G the response of SGD.

    G is the autocovariance of the second-order autoregression with φ₁ = 1 + β - ηh, φ₂ = -β. Since the
    weights (M - l) add up to M(M - 1)/2, the bracket is the mean of D(l) = G(0) - G(l), which obeys

        D(l) = φ₁D(l-1) + φ₂D(l-2) + ηh G(0),   D(0) = 0,   D(1) = ηh G(0)/(1 + β),

    with ηh G(0) finite at h = 0: nothing cancels, however flat the direction. Stiff directions (ηhM ≫ 1)
    have the white-noise value, flat ones η²V(M + 1)/(6(1 - β)²) if M(1 - β) ≫ 1 or β = 0.

    Args:
        curvature: h ≥ 0, shape (...).
        learning_rate: η.
        batches: M ≥ 1, batches per epoch.
        momentum: β.
        noise: V = (c/S)(N - S)/(N - 1), variance of the gradient of one batch.

    Returns:
        Shape of `curvature`; inf where ηh ≥ 2(1 + β), zero for a single batch.
    """
    h = curvature.double()
    step = learning_rate * h
    strength = learning_rate**2 * (1 + momentum) / ((1 - momentum) * (2 * (1 + momentum) - step))  # ηh G(0)
    growth = torch.zeros(*h.shape, 3, 3, dtype=h.dtype, device=h.device)  # of (D(l), D(l-1), strength)
    growth[..., 0, 0], growth[..., 0, 1], growth[..., 0, 2] = 1 + momentum - step, -momentum, 1.0
    growth[..., 1, 0] = growth[..., 2, 2] = 1.0
    start = torch.stack([strength / (1 + momentum), torch.zeros_like(h), strength], -1)
    differences = (_powers(growth, batches - 1)[..., 0, :] @ start[..., None]).squeeze(-1)  # l = 1 ... M-1
    weights = torch.arange(batches - 1, 0, -1, dtype=h.dtype, device=h.device)
    mean = 2 / (batches * max(batches - 1, 1)) * (differences @ weights)
    return torch.where((step >= 0) & (step < 2 * (1 + momentum)), noise * mean, torch.inf)


def _powers(matrix: Tensor, count: int) -> Tensor:
    """A⁰ ... A^(count-1) by doubling, shape (..., count, n, n)."""
    powers = torch.eye(matrix.shape[-1]).to(matrix).expand_as(matrix)[..., None, :, :]
    step = matrix
    while powers.shape[-3] < count:
        powers = torch.cat([powers, powers @ step[..., None, :, :]], dim=-3)
        step = step @ step
    return powers[..., :count, :, :]


def crossover_curvature(*, learning_rate: float, batches: int, momentum: float = 0.0) -> float:
    """h× ≈ 3(1 - β)/(η(M + 1)): below it σ² ∝ V, above it the noise acts as white. Needs M(1 - β) ≫ 1."""
    return 3 * (1 - momentum) / (learning_rate * (batches + 1))


def simulate_quadratic_wells(
    curvature: Tensor,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    noise: float = 1.0,
    batches: int,
    sampling: Literal["reshuffled", "independent"],
    replicas: int,
    epochs: int,
    discard: int,
    generator: torch.Generator,
) -> Tensor:
    """Mean δ² of an ensemble of SGD runs in wells ½hδ², over replicas and the epochs after `discard`.

    The runs start at δ = 0.

    Args:
        curvature: h, shape (d,).
        sampling: noises of one epoch that add up to zero, or independent ones of the same variance.

    Returns:
        Shape (d,).
    """
    h = curvature.double()
    delta = h.new_zeros(replicas, h.shape[0])
    velocity, total = torch.zeros_like(delta), torch.zeros_like(h)
    for epoch in range(epochs):
        xi = (
            torch.randn(batches, *delta.shape, dtype=h.dtype, device=h.device, generator=generator)
            * noise**0.5
        )
        if sampling == "reshuffled":
            xi = (xi - xi.mean(0)) * (batches / (batches - 1)) ** 0.5
        for kick in xi:
            velocity.mul_(momentum).addcmul_(h, delta).add_(kick)
            delta.sub_(velocity, alpha=learning_rate)
            if epoch >= discard:
                total += delta.square().mean(0)
    return total / ((epochs - discard) * batches)

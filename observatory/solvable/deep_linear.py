"""A two-layer linear network that learns a linear map: its course and its kernel, exactly, at every time.

f(x) = W₂W₁x learns Σ = U diag(σ) Vᵀ, d × d, from the inputs X = I by gradient flow on L = ½‖W₂W₁ - Σ‖², from
the balanced start W₁ = √s₀ R Vᵀ, W₂ = √s₀ U Rᵀ with R orthogonal. Then W₂W₁ = U diag(s) Vᵀ at all times:
every mode learns by itself, ds/dt = 2s(σ - s), the strong ones first. (Saxe, McClelland, Ganguli
2014, arXiv:1312.6120.)

Everything is float64. Leading dimensions are ensembles; times broadcast against them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mode_strengths(targets: Tensor, times: Tensor, *, start: float | Tensor) -> Tensor:
    """s(t) = σ e^{2σt}/(e^{2σt} - 1 + σ/s₀).

    Args:
        targets: singular values σ ≥ 0 of the map to be learnt, shape (..., d).
        times: t ≥ 0, shape (...).
        start: s₀ > 0, the strength of all modes at t = 0, shape (...).

    Returns:
        Shape (..., d).
    """
    sigma, t = targets.double(), torch.as_tensor(times, device=targets.device).double()[..., None]
    s0 = torch.as_tensor(start, dtype=torch.float64, device=targets.device)[..., None]
    if not bool((s0 > 0).all()):
        raise ValueError(f"modes that start at zero never learn: start must be positive, got {start}")
    left = torch.exp(-2 * sigma * t)  # written with decaying exponentials: nothing overflows
    zero = sigma == 0  # there s decays as s₀/(1 + 2 s₀ t)
    learnt = torch.where(zero, 2 * t, -torch.expm1(-2 * sigma * t) / sigma.masked_fill(zero, 1.0))
    return 1 / (left / s0 + learnt)


def half_times(targets: Tensor, *, start: float) -> Tensor:
    """t_α = ln(σ_α/s₀ - 1)/(2σ_α): when the mode has half of its final strength, shape of `targets`.

    Raises:
        ValueError: if a mode begins above half of its final strength.
    """
    sigma = targets.double()
    if not bool((sigma > 2 * start).all()):
        raise ValueError(f"start = {start} must be below half of every target, the least is {sigma.min():g}")
    return torch.log(sigma / start - 1) / (2 * sigma)


def kernel_eigenvalues(strengths: Tensor) -> Tensor:
    """Eigenvalues s_α + s_β (all pairs) of Θ = VSVᵀ⊗I + I⊗USUᵀ, the full NTK on X = I, in falling order.

    Args:
        strengths: s, shape (..., d).

    Returns:
        Shape (..., d²).
    """
    s = strengths.double()
    return (s[..., :, None] + s[..., None, :]).flatten(-2).sort(-1, descending=True).values


def kernel_trace(strengths: Tensor) -> Tensor:
    """Tr Θ = 2d Σ s, shape (...). With N = d examples and unit variance the Fisher trace is Tr Θ/d."""
    return 2 * strengths.shape[-1] * strengths.double().sum(-1)


def kernel_entropy(strengths: Tensor) -> Tensor:
    """S = -Σ q ln q, q = λ/Σλ, of the kernel's eigenvalues, in nats, shape (...)."""
    eigenvalues = kernel_eigenvalues(strengths)
    return torch.special.entr(eigenvalues / eigenvalues.sum(-1, keepdim=True)).sum(-1)


def balanced_start(
    target: Tensor, *, start: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """(W₁, W₂) = (√s₀ R Vᵀ, √s₀ U Rᵀ) with a random orthogonal R.

    Args:
        target: Σ, shape (..., d, d).
        start: s₀.
        generator: of R.
    """
    u, _, vh = torch.linalg.svd(target.double())
    noise = torch.randn(
        u.shape, dtype=u.dtype, generator=generator, device=generator.device if generator else None
    )
    r = torch.linalg.qr(noise.to(u.device)).Q
    return start**0.5 * r @ vh, start**0.5 * u @ r.mT

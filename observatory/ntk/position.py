"""Where in the spectrum of the kernel the loss pulls, and what the decay of the loss is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from observatory.looking.look import Loss
from observatory.looking.model import Forward, ModelFunction, Output
from observatory.ntk.collective import to_matrix
from observatory.ntk.directions import loss_gradients, output_directions
from observatory.ntk.norms import squared_gradient_norms


@dataclass(frozen=True)
class SpectralPosition:
    """The Rayleigh quotient ρ = GᵀΘG/GᵀG of the loss gradients in the spectrum λ₁ ≥ ... ≥ λₙ, n = N·C; each
    a 0-dimensional float64 tensor.
    """

    rayleigh: Tensor  # ρ = Σ λ_k c_k² / Σ c_k², in units of the kernel
    share: Tensor  # ρ/λ₁, between 0 and 1
    enhancement: Tensor  # ρ n/Tr Θ: 1 for gradients without preference
    rank: Tensor  # #{k: λ_k > ρ}/n


@dataclass(frozen=True)
class LossDecay:
    """-dL/dt = ‖∇L‖² under gradient flow, a product of three factors; each a 0-dimensional float64 tensor."""

    decay: Tensor  # -dL/dt = residual · network · position, loss per unit of learning rate times steps
    residual: Tensor  # ‖G‖²/N², from how wrong the outputs are
    network: Tensor  # Tr Θ/n, how far the parameters move an output
    position: Tensor  # ρ n/Tr Θ, whether errors lie where the kernel is large


def spectral_position(kernel: Tensor, gradients: Tensor) -> SpectralPosition:
    """Which eigenvalues drive the reduction of the loss (Nikolaou et al. 2026, arXiv:2605.31244).

    The normalisations are ours.

    Args:
        kernel: Θ, (N, C, N, C), as `empirical_ntk` gives it.
        gradients: G, (N, C), g_i = ∂ℓ_i/∂f_i of the loss of each example: `loss_gradients`.

    Raises:
        ValueError: if the shapes do not fit, or all gradients vanish.
    """
    if kernel.shape != 2 * gradients.shape:
        raise ValueError(
            f"a kernel of shape {tuple(kernel.shape)} needs gradients (N, C) with (N, C, N, C) the kernel's "
            f"shape, got {tuple(gradients.shape)}"
        )
    theta, g = to_matrix(kernel).double(), gradients.double().flatten()
    if not bool(g.any()):
        raise ValueError("all loss gradients vanish: the loss is at a minimum and pulls in no direction")
    eigenvalues = torch.linalg.eigvalsh(theta)
    rho = g @ theta @ g / (g @ g)
    return SpectralPosition(
        rayleigh=rho,
        share=rho / eigenvalues[-1],
        enhancement=rho * len(g) / eigenvalues.sum(),
        rank=(eigenvalues > rho).double().mean(),
    )


def loss_decay(
    model: nn.Module | ModelFunction,
    x: Any,
    y: Tensor,
    *,
    loss: Loss | None = None,
    max_memory: int = 2**30,
    forward: Forward | None = None,
    output: Output | None = None,
    select: str | Callable[[str], bool] | None = None,
) -> LossDecay:
    """-dL/dt = (1/N²) GᵀΘG = (‖G‖²/N²) · (Tr Θ/n) · (ρ n/Tr Θ) under gradient flow, without any kernel.

    One ordinary backward pass for ‖∇L‖², and per-example gradient norms for Tr Θ (C backward passes to the
    activations).

    Args:
        model, x, max_memory, forward, output, select: as for `empirical_ntk`.
        y: targets, one for each example.
        loss: of (outputs, targets), mean over the examples; default that of the likelihood.
    """
    function = ModelFunction.of(model, forward=forward, output=output, select=select)
    theta = {name: p.detach().requires_grad_() for name, p in function.theta.items()}
    with torch.enable_grad():
        f = function(x, theta)
    g = loss_gradients(f.detach(), y, loss)
    found = torch.autograd.grad(f, list(theta.values()), g / len(f), allow_unused=True)
    decay = torch.stack([part.double().square().sum() for part in found if part is not None]).sum()
    norms = squared_gradient_norms(
        function, x, lambda outputs, _: output_directions("full", outputs), max_memory=max_memory
    )
    residual = g.double().square().sum() / len(f) ** 2
    network = norms.double().sum() / g.numel()
    return LossDecay(decay, residual, network, decay / (residual * network))

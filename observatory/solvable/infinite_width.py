"""Kernels of infinitely wide fully connected networks: what the empirical NTK converges to as 1/√width.

Everything is float64 inside; leading dimensions of the inputs are ensembles. (Cho, Saul 2009, arc-cosine
kernels; Jacot, Gabriel, Hongler 2018, arXiv:1806.07572; Lee et al. 2019, arXiv:1902.06720.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Activation = Literal["relu", "erf"]


@dataclass(frozen=True)
class WideKernels:
    """Covariance of the outputs at initialisation, and neural tangent kernel, for one output."""

    nngp: Tensor  # (..., n, m)
    ntk: Tensor  # (..., n, m)


@dataclass(frozen=True)
class _Moments:
    """Second moments of pre-activations: between all pairs, and of each example of either side."""

    pairs: Tensor  # (..., n, m)
    left: Tensor  # (..., n)
    right: Tensor  # (..., m)

    def scaled(self, weight: float, bias: float) -> _Moments:
        return _Moments(*(weight * part + bias for part in (self.pairs, self.left, self.right)))


def two_layer_relu_kernel(x: Tensor, x2: Tensor | None = None) -> Tensor:
    """Θ of f = (1/√m) Σ_k a_k relu(w_k·x), w, a ~ N(0, 1), as m → ∞.

    Θ = x·x' (π - φ)/(2π) + (‖x‖‖x'‖/2π)(sin φ + (π - φ) cos φ),   φ the angle between x and x'.

    Args:
        x: (..., n, d).
        x2: (..., m, d); default x.

    Returns:
        Shape (..., n, m).
    """
    moments = _inputs(x, x2)
    second, slope = _relu(moments)
    return second.pairs + slope * moments.pairs


def wide_network_kernels(
    x: Tensor,
    x2: Tensor | None = None,
    *,
    hidden: int | Sequence[int],
    activation: Activation = "relu",
    parameterisation: Literal["ntk", "standard"] = "ntk",
    weight_variance: float = 2.0,
    bias_variance: float = 0.0,
    bias: bool = True,
) -> WideKernels:
    """Covariance and NTK of a fully connected network with hidden layers that are infinitely wide.

    With φ the activation and z ~ N(0, K_l), layer by layer,

        K_{l+1} = σ_w² E[φ(z)φ(z')] + σ_b²,   Θ_{l+1} = G_{l+1} + σ_w² E[φ'(z)φ'(z')] Θ_l,

    where G is what the layer's own weights contribute. In NTK parameterisation, z = (σ_w/√n) W a + σ_b b with
    standard normal W and b, G = K. In the standard one, as PyTorch stores its weights, W ~ N(0, σ_w²/n) and
    b ~ N(0, σ_b²), G = n E[φφ] + 1 (the 1 without `bias=False`) grows with the width n.

    Args:
        x: (..., n, d).
        x2: (..., m, d); default x.
        hidden: number of hidden layers; their widths for parameterisation="standard".
        activation: ReLU, or the error function.
        weight_variance, bias_variance: σ_w², σ_b².
        bias: whether there are biases to train (standard parameterisation).

    Raises:
        ValueError: if the standard parameterisation is asked for without widths.
    """
    standard = parameterisation == "standard"
    if standard and isinstance(hidden, int):
        raise ValueError(
            f"standard parameterisation needs the widths of the hidden layers, got hidden={hidden}"
        )
    widths = [x.shape[-1], *([0] * hidden if isinstance(hidden, int) else hidden)]
    average = _inputs(x, x2).scaled(1 / widths[0], 0.0)  # E[aa'] of the activations that a layer is given
    slope, ntk = torch.zeros_like(average.pairs), torch.zeros_like(average.pairs)
    for layer, width in enumerate(widths):
        covariance = average.scaled(weight_variance, bias_variance)
        own = width * average.pairs + bias if standard else covariance.pairs
        ntk = own + weight_variance * slope * ntk
        if layer < len(widths) - 1:
            average, slope = (_relu if activation == "relu" else _erf)(covariance)
    return WideKernels(nngp=covariance.pairs, ntk=ntk)


def _inputs(x: Tensor, x2: Tensor | None) -> _Moments:
    x = x.double()
    other = x if x2 is None else x2.double()
    return _Moments(x @ other.mT, x.square().sum(-1), other.square().sum(-1))


def _relu(k: _Moments) -> tuple[_Moments, Tensor]:
    """E[relu(z) relu(z')] and E[step(z) step(z')]."""
    norms = (k.left[..., :, None] * k.right[..., None, :]).sqrt()
    cosine = torch.where(norms > 0, k.pairs / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0).clamp(-1, 1)
    angle = cosine.arccos()
    second = norms / (2 * math.pi) * (((1 - cosine) * (1 + cosine)).sqrt() + (math.pi - angle) * cosine)
    return _Moments(second, k.left / 2, k.right / 2), (math.pi - angle) / (2 * math.pi)


def _erf(k: _Moments) -> tuple[_Moments, Tensor]:
    """E[erf(z) erf(z')] and E[erf'(z) erf'(z')] (Williams 1997)."""
    left, right = 1 + 2 * k.left, 1 + 2 * k.right
    product = left[..., :, None] * right[..., None, :]

    def second(pairs: Tensor, norms: Tensor) -> Tensor:
        return 2 / math.pi * (2 * pairs / norms).clamp(-1, 1).arcsin()

    slope = 4 / math.pi / (product - 4 * k.pairs.square()).sqrt()
    pairs = second(k.pairs, product.sqrt())
    return _Moments(pairs, second(k.left, left), second(k.right, right)), slope

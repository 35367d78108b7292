"""Fluctuations of the weights of deep linear networks f(x) = W_L ... W₁ x about a minimum.

Conventions: loss ½⟨‖f(x) - y‖²⟩ summed over outputs, white inputs, isotropic label noise s² for each output,
batches of S, learning rate η. Layers are numbered from the input; W_l has shape (..., n_l, n_{l-1}) and
leading dimensions are ensembles. (Gross, Raulf, Räth 2024, arXiv:2311.14120; Du, Hu, Lee 2018,
arXiv:1806.00900.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TwoLayerVariances:
    """Variances in the singular bases W₂ = U s₂ Qᵀ, W₁ = Q s₁ Vᵀ, in units of ηs²/(2S)."""

    second: Tensor  # Var A_ik, A = Uᵀ δW₂ Q, shape (..., n_out, n_h)
    first: Tensor  # Var B_ik, B = Qᵀ δW₁ V, shape (..., n_h, n_in)


def two_layer_variances(first: Tensor, second: Tensor, *, inputs: int, outputs: int) -> TwoLayerVariances:
    """Var A_ik = s₁k²/(s₁k² + s₂i²), 1 for i > n_h;   Var B_ik = s₂i²/(s₁k² + s₂i²), 1 for k > n_h.

    The curvature that layer 2 alone feels along A_ik is s₁k²: through the coupling of the layers its variance
    rises with its own curvature. With one layer frozen the variance is 1 everywhere.

    Args:
        first: singular values s₁ of W₁, shape (..., n_h).
        second: singular values s₂ of W₂, shape (..., n_h), in the same hidden basis.
        inputs: n_in ≥ n_h.
        outputs: n_out ≥ n_h.

    Raises:
        ValueError: if the hidden layer is wider than the inputs or the outputs.
    """
    hidden = first.shape[-1]
    if hidden > min(inputs, outputs):
        raise ValueError(
            f"the hidden layer ({hidden}) must not be wider than inputs ({inputs}) and outputs ({outputs})"
        )
    s1, s2 = first.double().square(), second.double().square()
    lead = torch.broadcast_shapes(s1.shape, s2.shape)[:-1]
    one, two = s1.expand(*lead, hidden), s2.expand(*lead, hidden)
    total = two[..., :, None] + one[..., None, :]  # (..., i, k)
    a = one.new_ones(*lead, outputs, hidden)
    b = one.new_ones(*lead, hidden, inputs)
    a[..., :hidden, :] = one[..., None, :] / total
    b[..., :, :hidden] = two[..., :, None] / total
    return TwoLayerVariances(second=a, first=b)


def stationary_gauge(modes: Tensor, *, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Singular values (s₁, s₂) of the two layers in the gauge that SGD selects, n_out W₁W₁ᵀ = n_in W₂ᵀW₂.

    s₁k² = m_k √(n_in/n_out), s₂k² = m_k √(n_out/n_in), m_k the singular values of W₂W₁, shape (..., n_h). SGD
    reaches this gauge on the slow time S/(η²s²).
    """
    m = modes.double()
    ratio = (inputs / outputs) ** 0.5
    return (m * ratio).sqrt(), (m / ratio).sqrt()


def gauge_drift(
    first: Tensor, second: Tensor, *, learning_rate: float, batch_size: int, label_noise: float
) -> Tensor:
    """Mean change of W₂ᵀW₂ - W₁W₁ᵀ per step near the minimum, η²(s²/S)(n_out W₁W₁ᵀ - n_in W₂ᵀW₂).

    Args:
        first: W₁, shape (..., n_h, n_in).
        second: W₂, shape (..., n_out, n_h).

    Returns:
        Shape (..., n_h, n_h).
    """
    rate = learning_rate**2 * label_noise**2 / batch_size
    return rate * (second.shape[-2] * first @ first.mT - first.shape[-1] * second.mT @ second)


def balancedness(lower: Tensor, upper: Tensor) -> Tensor:
    """Bal = W_{l+1}ᵀW_{l+1} - W_l W_lᵀ of adjacent linear layers, which gradient flow conserves.

    Shape (..., n_l, n_l).
    """
    return upper.mT @ upper - lower @ lower.mT


def balancedness_after_step(
    lower: Tensor,
    upper: Tensor,
    lower_gradient: Tensor,
    upper_gradient: Tensor,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
) -> Tensor:
    """Exactly what one step of plain SGD makes of the balancedness of adjacent linear layers, of any depth.

    Bal' = (1 - ηλ)² Bal + η²(G_{l+1}ᵀG_{l+1} - G_l G_lᵀ), G the gradients of the batch without the decay λW.
    """
    shrinking = (1 - learning_rate * weight_decay) ** 2
    kick = upper_gradient.mT @ upper_gradient - lower_gradient @ lower_gradient.mT
    return shrinking * balancedness(lower, upper) + learning_rate**2 * kick


def scalar_gauge_rate(
    u: float, v: float, *, learning_rate: float, batch_size: int, label_noise: float
) -> float:
    """Rate per step at which ⟨u² - v²⟩ of the network f(x) = uvx decays, x ~ N(0, 1): to first order in η

    η²(s²/S)(1 + η(u² + v²)/2).
    """
    return learning_rate**2 * label_noise**2 / batch_size * (1 + learning_rate * (u * u + v * v) / 2)


def range_projector(layers: Sequence[Tensor]) -> Tensor:
    """Projector J⁺J on the directions of weight space that change the function, Jδ = Σ_l W_L..δW_l..W₁.

    To leading order in η the stationary covariance of all weights is (ηs²/2S) times it. The
    eigendecomposition is that of JJᵀ, of size n_out n_in.

    Args:
        layers: W₁ ... W_L, without leading dimensions, each (n_l, n_{l-1}).

    Returns:
        Shape (P, P), P = Σ n_l n_{l-1}, in the order of `layers` with each matrix flattened by rows.
    """
    weights = [w.double() for w in layers]
    jacobian = torch.cat([_layer_jacobian(weights, index) for index in range(len(weights))], dim=1)
    values, vectors = torch.linalg.eigh(jacobian @ jacobian.mT)
    kept = values > 1e-12 * values[-1]
    rows = (
        vectors[:, kept] / values[kept].sqrt()
    ).mT @ jacobian  # orthonormal rows that span the range of Jᵀ
    return rows.mT @ rows


def _layer_jacobian(weights: list[Tensor], index: int) -> Tensor:
    """d vec(W_L ... W₁)/d vec W_l = (W_L ... W_{l+1}) ⊗ (W_{l-1} ... W₁)ᵀ, vec by rows."""
    above = _product(weights[index + 1 :], weights[index].shape[0], weights[0])
    below = _product(weights[:index], weights[0].shape[1], weights[0])
    return torch.kron(above.contiguous(), below.mT.contiguous())


def _product(weights: list[Tensor], size: int, like: Tensor) -> Tensor:
    product = torch.eye(size, dtype=like.dtype, device=like.device)
    for weight in weights:
        product = weight @ product
    return product


@dataclass(frozen=True)
class TwoLayerEnsemble:
    """Independent SGD runs of two-layer linear networks on fresh white inputs, advanced together."""

    first: Tensor  # W₁, shape (R, n_h, n_in), changed in place by `advance`
    second: Tensor  # W₂, shape (R, n_out, n_h), changed in place by `advance`
    target: Tensor  # shape (n_out, n_in)
    learning_rate: float
    batch_size: int
    label_noise: float
    frozen_first: bool = False

    def advance(self, generator: torch.Generator) -> None:
        """One step of SGD in each run: G_f = (1/S) Σ (W₂W₁x - y) xᵀ, G₂ = G_f W₁ᵀ, G₁ = W₂ᵀ G_f."""
        replicas, outputs, inputs = self.first.shape[0], *self.target.shape
        shape = (replicas, self.batch_size, inputs + outputs)
        z = torch.randn(shape, dtype=self.first.dtype, device=self.first.device, generator=generator)
        x, noise = z[..., :inputs], self.label_noise * z[..., inputs:]
        error = x @ (self.second @ self.first - self.target).mT - noise  # (R, S, n_out)
        slope = error.mT @ x / self.batch_size  # (R, n_out, n_in)
        change = slope @ self.first.mT
        if not self.frozen_first:
            self.first.sub_(self.second.mT @ slope, alpha=self.learning_rate)
        self.second.sub_(change, alpha=self.learning_rate)

"""Curvature of the cross-entropy in the last layer, and the covariance of the logits that follows from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from observatory.looking.ranks import all_reduce_sum
from observatory.uncertainty.accumulators import Accumulator

ROWS = 2**22  # numbers of a (rows, K, K d) product at a time


def class_curvature(probabilities: Tensor) -> Tensor:
    """Λ = diag(p) - p pᵀ of each row, (n, K, K); p(1 - p) for a single logit, (n, 1, 1)."""
    if probabilities.shape[1] == 1:
        return (probabilities * (1 - probabilities))[..., None]
    return torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]


def probabilities_of(logits: Tensor) -> Tensor:
    """Softmax over K logits; the sigmoid of a single one."""
    return torch.sigmoid(logits) if logits.shape[-1] == 1 else torch.softmax(logits, -1)


class FullCurvature(nn.Module):
    """H = Σ_i Λ_i ⊗ f_i f_iᵀ, the Hessian of the summed cross-entropy in W (K, d) row by row, plus δ.

    H vanishes along equal shifts of all classes: without δ > 0 it has no inverse.

    Args:
        classes: K.
        width: d.
        device: of the sum.
        memory: bytes that the (K d)² numbers may take.

    Raises:
        ValueError: if they take more.
    """

    matrix: Tensor  # H, (K d, K d) float64
    root_inverse: Tensor  # L⁻¹ of H + δ = L Lᵀ, (K d, K d) float64

    def __init__(
        self, classes: int, width: int, *, device: torch.device | None = None, memory: float = 4e9
    ) -> None:
        super().__init__()
        size = classes * width
        if 8.0 * size**2 > memory:
            raise ValueError(
                f"covariance='ggn' keeps {size}² numbers, {8e-9 * size**2:.1f} GB for {classes} classes and "
                f"{width} features; use covariance='shared' or 'kron', or raise memory={memory:.3g}"
            )
        self.classes, self.width = classes, width
        matrix = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.register_buffer("matrix", matrix)
        self.register_buffer("root_inverse", torch.zeros_like(matrix))

    def update(self, features: Tensor, probabilities: Tensor, weights: Tensor | None = None) -> None:
        """Add rows: features (n, d), probabilities (n, K), loss weights (n,)."""
        f, curvature = features.double(), class_curvature(probabilities.double())
        if weights is not None:
            curvature = curvature * weights.double()[:, None, None]
        blocks = self.matrix.view(self.classes, self.width, self.classes, self.width)
        for k in range(self.classes):  # a loop over blocks: at most K (n, d) products at a time
            weighted = f[:, None] * curvature[:, k, : k + 1, None]  # (n, k + 1, d)
            block = (weighted.flatten(1).mT @ f).view(k + 1, self.width, self.width)
            blocks[k, :, : k + 1] += block.movedim(0, 1)

    def all_reduce(self) -> None:
        self.matrix.copy_(all_reduce_sum(self.matrix))

    def hessian(self) -> Tensor:
        """H, symmetric."""
        lower = self.matrix.tril()
        return lower + lower.tril(-1).mT

    def factorise(self, prior: float) -> None:
        """With the prior precision δ > 0 of every weight."""
        eye = torch.eye(len(self.matrix), dtype=torch.float64, device=self.matrix.device)
        root, failed = torch.linalg.cholesky_ex(self.hessian() + prior * eye)
        if not prior > 0 or int(failed):
            raise ValueError(
                f"the curvature is singular along equal shifts of all classes; reg={prior:g} is too small a "
                "prior precision, give a larger one"
            )
        self.root_inverse.copy_(torch.linalg.solve_triangular(root, eye, upper=False))

    def forward(self, features: Tensor) -> Tensor:
        """V_kj = fᵀ[(H + δ)⁻¹]_kj f, (n, K, K) float64."""
        columns = self.root_inverse.view(-1, self.classes, self.width)  # (K d, K, d)
        at_once = max(1, ROWS // (self.classes * len(columns)))
        parts = []
        for rows in features.double().split(at_once):
            half = torch.einsum("nd,akd->nka", rows, columns)
            parts.append(half @ half.mT)
        return torch.cat(parts)


class KronCurvature(nn.Module):
    """(mean_i Λ_i) ⊗ C + δ: the curvature as if classes and features were independent.

    With Λ = Q diag(μ) Qᵀ and C = U diag(λ) Uᵀ, V = Q diag_a(Σ_b (u_b·f)²/(μ_a λ_b + δ)) Qᵀ: d² + dK
    operations a row; the Jacobian f ⊗ 1 is never formed.

    Args:
        classes: K.
        width: d.
        device: of the sums.
    """

    matrix: Tensor  # Σ Λ, (K, K) float64
    vectors: Tensor  # U, (d, d) float64
    class_vectors: Tensor  # Q, (K, K) float64
    shrinkage: Tensor  # 1/(μ_a λ_b + δ), (d, K) float64

    def __init__(self, classes: int, width: int, *, device: torch.device | None = None) -> None:
        super().__init__()
        empty = torch.zeros(classes, classes, dtype=torch.float64, device=device)
        self.register_buffer("matrix", empty)
        self.register_buffer("class_vectors", torch.zeros_like(empty))
        self.register_buffer("vectors", empty.new_zeros(width, width))
        self.register_buffer("shrinkage", empty.new_zeros(width, classes))

    def update(self, features: Tensor, probabilities: Tensor, weights: Tensor | None = None) -> None:
        """Add rows: probabilities (n, K), loss weights (n,)."""
        curvature = class_curvature(probabilities.double())
        if weights is not None:
            curvature = curvature * weights.double()[:, None, None]
        self.matrix += curvature.sum(0)

    def all_reduce(self) -> None:
        self.matrix.copy_(all_reduce_sum(self.matrix))

    def factorise(self, prior: float, gram: Accumulator) -> None:
        """With the prior precision δ > 0 and C."""
        if not prior > 0:
            raise ValueError(f"the curvature is singular without a prior precision reg > 0, got {prior}")
        values, vectors = gram.spectrum()
        mu, q = torch.linalg.eigh(self.matrix / gram.weight)
        self.vectors.copy_(vectors)
        self.class_vectors.copy_(q)
        self.shrinkage.copy_(1 / (values[:, None] * mu.clamp_min(0) + prior))

    def scales(self, features: Tensor) -> Tensor:
        """Variances along the columns of Q, (n, K), in the precision of the features."""
        return (features @ self.vectors.to(features)).square() @ self.shrinkage.to(features)

    def diagonal(self, features: Tensor) -> Tensor:
        """V_kk, (n, K), in the precision of the features."""
        return self.scales(features) @ self.class_vectors.square().mT.to(features)

    def forward(self, features: Tensor) -> Tensor:
        """V, (n, K, K) float64."""
        q = self.class_vectors
        return (q * self.scales(features.double())[:, None]) @ q.mT

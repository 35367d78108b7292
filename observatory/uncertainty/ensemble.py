"""Shallow ensembles: many last layers over one set of features, for errors of anything computed from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def draw_weights(
    weight: Tensor,
    root: Tensor,
    covariance: Tensor,
    members: int,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """W_m = W + chol(Σ) Z_m R^{-T}, Z_m ~ N(0, 1), recentred to the mean W.

    The rows of W_m - W then have the covariance Σ ⊗ A⁻¹, and W_m f the covariance s²(x) Σ. The relative
    standard deviation of a variance that M members estimate (divisor M - 1) is √(2/(M - 1)). (Kellner &
    Ceriotti 2024, arXiv:2402.16621.)

    Args:
        weight: W with the bias as its last column, (O, d).
        root: R, upper triangular with RᵀR = A, (d, d).
        covariance: Σ, (O, O).
        members: M ≥ 2.
        generator: of the draws, on the CPU.

    Returns:
        (M, O, d) float64.
    """
    if members < 2:
        raise ValueError(f"an ensemble has at least two members, got {members}")
    z = torch.randn(members, *weight.shape, generator=generator, dtype=torch.float64).to(root.device)
    z = z - z.mean(0)
    factor = (
        torch.linalg.cholesky_ex(covariance.double())[0]
        if len(covariance) > 1
        else covariance.double().sqrt()
    )
    deviations = torch.linalg.solve_triangular(root.mT, factor @ z, upper=False, left=False)
    return weight.double() + deviations


class ShallowEnsemble(nn.Module):
    """All members' outputs from one product with the features: y_m = W_m f, (M, n, O).

    Apply any g to every member, differentiate if need be, and take the mean and the variance (divisor
    M - 1) of the results: the error of g(y).

    Args:
        weights: of the members, (M, O, d), with the bias as the last column.
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, features: Tensor) -> Tensor:
        """(M, n, O) for features (n, d)."""
        members, outputs, _ = self.weights.shape
        flat = nn.functional.linear(features, self.weights.flatten(0, 1))  # (n, M O)
        return flat.unflatten(-1, (members, outputs)).movedim(1, 0)

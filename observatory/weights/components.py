"""Principal components of a trajectory with far more weights than snapshots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.weights.trajectory import column_means

BLOCK_BYTES = 2**26  # of the float64 copy of some columns that a product works on
NEGLIGIBLE = 1e-12  # times Λ₁T: directions of smaller eigenvalues are rounding noise


@dataclass(frozen=True, eq=False)
class Components:
    """Spectrum of the centred Gram matrix K = ZZᵀ of T snapshots: all that can be had without Z itself."""

    variance: Tensor  # σ_i², (r,), falling, divisor T - 1, weight units squared
    projections: Tensor  # θ_i(t), (T, r), weight units
    total: Tensor  # Tr Σ, scalar, over all weights

    @property
    def participation_ratio(self) -> Tensor:
        """(Tr Σ)²/Tr Σ²: the number of directions that share the variance."""
        return self.total.square() / self.variance.square().sum()


def centred_gram(rows: Tensor) -> Tensor:
    """K = ZZᵀ of the rows minus their mean, accumulated in float64 over blocks of columns.

    Rows are never copied to float64 as a whole. Products are taken below the diagonal only, in four strips.

    Args:
        rows: (T, P), any floating type.

    Returns:
        Shape (T, T), float64. Cost about 1.25 T²P flop for T ≫ 1.
    """
    snapshots, size = rows.shape
    gram = torch.zeros(snapshots, snapshots, dtype=torch.float64, device=rows.device)
    width = max(1, BLOCK_BYTES // (8 * snapshots))
    strip = -(-snapshots // 4) if snapshots > 128 else snapshots
    for start in range(0, size, width):
        block = rows[:, start : start + width].double()
        block -= block.mean(0)
        for top in range(0, snapshots, strip):
            end = min(top + strip, snapshots)
            gram[top:end, :end] += block[top:end] @ block[:end].mT
    lower = gram.tril()
    return lower + lower.tril(-1).mT


def detrended(gram: Tensor) -> Tensor:
    """The Gram matrix of the same trajectory without its linear trend in time, (T, T)."""
    time = torch.arange(gram.shape[0], dtype=gram.dtype, device=gram.device)
    time = time - time.mean()
    time = time / time.norm()
    without = gram - torch.outer(time, time @ gram)
    return without - torch.outer(without @ time, time)


def components_of_gram(gram: Tensor, *, count: int | None = None) -> Components:
    """Variances and projections from K = UΛUᵀ: σ_i² = Λ_i/(T - 1), θ_i(t) = U_ti √Λ_i.

    Eigenvalues below 10⁻¹² Λ₁T are left out.

    Args:
        gram: centred Gram matrix, (T, T).
        count: number of components to keep; default all.
    """
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = int((values > NEGLIGIBLE * values[0] * len(values)).sum())
    kept = kept if count is None else min(kept, count)
    freedom = gram.shape[0] - 1
    projections = vectors[:, :kept] * values[:kept].sqrt()
    return Components(values[:kept] / freedom, projections, gram.diagonal().sum() / freedom)


def lift(rows: Tensor, projections: Tensor) -> Tensor:
    """Unit directions p_i = Zᵀu_i/√Λ_i in weight space, from the projections on them.

    Args:
        rows: (T, P), centred or not.
        projections: of centred components, (T, k).

    Returns:
        Shape (k, P), float32 or the type of `rows`, whichever is finer.
    """
    weights = (projections / projections.square().sum(0)).mT  # (k, T): u_iᵀ/√Λ_i, orthogonal to constants
    kind = torch.promote_types(rows.dtype, torch.float32)
    directions = torch.empty(weights.shape[0], rows.shape[1], dtype=kind, device=rows.device)
    width = max(1, BLOCK_BYTES // (8 * rows.shape[0]))
    for start in range(0, rows.shape[1], width):
        block = rows[:, start : start + width].double()
        directions[:, start : start + width] = weights @ (block - block.mean(0))
    return directions


def project(rows: Tensor, directions: Tensor) -> Tensor:
    """θ_i(t) = p_i·(θ_t - θ̄) on given unit directions (k, P), shape (T, k), float64."""
    total = torch.zeros(rows.shape[0], directions.shape[0], dtype=torch.float64, device=rows.device)
    width = max(1, BLOCK_BYTES // (8 * rows.shape[0]))
    for start in range(0, rows.shape[1], width):
        part = slice(start, start + width)
        total += rows[:, part].double() @ directions[:, part].double().mT
    return total - total.mean(0)


def principal_components(rows: Tensor, count: int | None = None) -> tuple[Components, Tensor]:
    """Principal components of T snapshots of P weights, and their unit directions (k, P).

    P > T goes through the T × T Gram matrix, otherwise through the P × P covariance, both in float64.

    Args:
        rows: (T, P).
        count: number of components; default all that are not rounding noise.
    """
    snapshots, size = rows.shape
    if size > snapshots:
        found = components_of_gram(centred_gram(rows), count=count)
        return found, lift(rows, found.projections)
    centred = rows.double() - column_means(rows)
    return components_of_covariance(centred.mT @ centred / (snapshots - 1), centred, count=count)


def components_of_covariance(
    covariance: Tensor, centred: Tensor, *, count: int | None = None
) -> tuple[Components, Tensor]:
    """The same from a P × P covariance matrix; `centred` (T, P) gives the projections."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = int((values > NEGLIGIBLE * values[0] * max(len(centred), 1)).sum())
    kept = kept if count is None else min(kept, count)
    directions = vectors[:, :kept].mT
    found = Components(values[:kept], centred @ directions.mT, covariance.diagonal().sum())
    return found, directions

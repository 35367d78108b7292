"""Principal components of a trajectory with far more weights than snapshots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.weights.trajectory import column_blocks, column_means

NEGLIGIBLE = 1e-12  # times Λ₁T: directions of smaller eigenvalues are rounding noise


@dataclass(frozen=True, eq=False)
class Components:
    """Spectrum of the centred Gram matrix K = ZZᵀ of T snapshots: all that can be had without Z itself."""

    variance: Tensor  # σ_i², (r,), all of them, falling, divisor T - 1, weight units squared
    projections: Tensor  # θ_i(t) of the leading ones, (T, k), weight units
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
    snapshots = rows.shape[0]
    gram = torch.zeros(snapshots, snapshots, dtype=torch.float64, device=rows.device)
    strip = -(-snapshots // 4) if snapshots > 128 else snapshots
    for block in column_blocks(rows):
        for top in range(0, snapshots, strip):
            end = min(top + strip, snapshots)
            gram[top:end, :end].addmm_(block[top:end], block[:end].mT)
    lower = gram.tril()
    return lower + lower.tril(-1).mT


def detrended(gram: Tensor) -> Tensor:
    """The Gram matrix of the same trajectory without its linear trend in time, (T, T)."""
    time = _unit_time(len(gram), gram)
    without = gram - torch.outer(time, time @ gram)
    return without - torch.outer(without @ time, time)


def components_of_gram(gram: Tensor, *, count: int | None = None) -> Components:
    """Variances and projections from K = UΛUᵀ: σ_i² = Λ_i/(T - 1), θ_i(t) = U_ti √Λ_i.

    Eigenvalues below 10⁻¹² Λ₁T are left out.

    Args:
        gram: centred Gram matrix, (T, T).
        count: number k of projections; default all.
    """
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    values = values[: _significant(values, len(values))]
    leading = values[:count]
    projections = vectors[:, : len(leading)] * leading.sqrt()
    freedom = len(gram) - 1
    return Components(values / freedom, projections, gram.diagonal().sum() / freedom)


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
    return torch.cat([(weights @ block).to(kind) for block in column_blocks(rows)], dim=1)


def project(rows: Tensor, directions: Tensor) -> Tensor:
    """θ_i(t) = p_i·(θ_t - θ̄) on given unit directions (k, P), shape (T, k), float64."""
    total = torch.zeros(rows.shape[0], directions.shape[0], dtype=torch.float64, device=rows.device)
    start = 0
    for block in column_blocks(rows):
        stop = start + block.shape[1]
        total += block @ directions[:, start:stop].double().mT
        start = stop
    return total


def principal_components(
    rows: Tensor, count: int | None = None, *, trend: bool = True
) -> tuple[Components, Tensor]:
    """Principal components of T snapshots of P weights, and their unit directions (k, P).

    P > T goes through the T × T Gram matrix, otherwise through the P × P covariance, both in float64.

    Args:
        rows: (T, P).
        count: number k of directions; default all that are not rounding noise.
        trend: keep a linear trend in time; without it the components are those of the rest.
    """
    if rows.shape[1] > rows.shape[0]:
        gram = centred_gram(rows)
        found = components_of_gram(gram if trend else detrended(gram), count=count)
        return found, lift(rows, found.projections)
    centred = rows.double() - column_means(rows)
    if not trend:
        time = _unit_time(len(centred), centred)
        centred = centred - torch.outer(time, time @ centred)
    values, vectors = torch.linalg.eigh(centred.mT @ centred / (len(rows) - 1))
    values, vectors = values.flip(0), vectors.flip(1)
    total = values.sum()
    values = values[: _significant(values, len(rows))]
    vectors = vectors[:, : len(values[:count])]
    return Components(values, centred @ vectors, total), vectors.mT


def _significant(values: Tensor, snapshots: int) -> int:
    return int((values > NEGLIGIBLE * values[0] * snapshots).sum())


def _unit_time(snapshots: int, like: Tensor) -> Tensor:
    time = torch.arange(snapshots, dtype=like.dtype, device=like.device)
    time = time - time.mean()
    return time / time.norm()

"""Principal components of a trajectory with far more weights than snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.numerics.eigenpairs import leading_eigenpairs
from observatory.weights.trajectory import BLOCK_BYTES, MANY_COLUMNS, column_blocks, column_means

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
    for top in range(strip, snapshots, strip):  # the other triangle, in place
        gram[:top, top : top + strip] = gram[top : top + strip, :top].mT
    return gram


def detrended(gram: Tensor) -> Tensor:
    """The Gram matrix of the same trajectory without its linear trend in time, (T, T)."""
    time = _unit_time(len(gram), gram)
    without = gram - torch.outer(time, time @ gram)
    return without - torch.outer(without @ time, time)


def components_of_gram(gram: Tensor, *, count: int | None = None) -> Components:
    """Variances and projections from K = UΛUᵀ: σ_i² = Λ_i/(T - 1), θ_i(t) = U_ti √Λ_i.

    Eigenvalues below 10⁻¹² Λ₁T are left out.

    Args:
        gram: centred Gram matrix, (T, T); overwritten, on a CPU, where few projections are asked for.
        count: number k of projections; default all.
    """
    total, freedom = gram.diagonal().sum(), len(gram) - 1
    values, vectors = leading_eigenpairs(gram, len(gram) if count is None else count)
    values = values[: _significant(values, len(values))]
    leading = values[: vectors.shape[1]]
    projections = vectors[:, : len(leading)] * leading.sqrt()
    return Components(values / freedom, projections, total / freedom)


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
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for block in _row_blocks(rows, trend):
        covariance.addmm_(block.mT, block, alpha=1 / (len(rows) - 1))
    values, vectors = torch.linalg.eigh(covariance)
    values = values.flip(0)
    total = values.sum()
    values = values[: _significant(values, len(rows))]
    vectors = vectors[:, vectors.shape[1] - len(values[:count]) :].flip(1)
    projections = torch.cat([block @ vectors for block in _row_blocks(rows, trend)])
    return Components(values, projections, total), vectors.mT


def _row_blocks(rows: Tensor, trend: bool) -> Iterator[Tensor]:
    """Some snapshots at a time in float64, about their mean, or their linear trend where `trend` is off."""
    mean, time = column_means(rows), _unit_time(len(rows), rows.new_empty(0, dtype=torch.float64))
    height = max(MANY_COLUMNS, BLOCK_BYTES // (8 * rows.shape[1]))
    parts = list(zip(rows.split(height), time.split(height), strict=True))
    slope = torch.zeros_like(mean)
    if not trend:
        for block, moments in parts:
            slope += moments @ (block - mean)
    for block, moments in parts:
        yield block - mean if trend else (block - mean).addr_(moments, slope, alpha=-1)


def _significant(values: Tensor, snapshots: int) -> int:
    return int((values > NEGLIGIBLE * values[0] * snapshots).sum())


def _unit_time(snapshots: int, like: Tensor) -> Tensor:
    time = torch.arange(snapshots, dtype=like.dtype, device=like.device)
    time = time - time.mean()
    return time / time.norm()

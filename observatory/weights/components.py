"""Principal components of a trajectory, of far more weights than snapshots or of fewer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.numerics.eigenpairs import dominant_eigenpairs, krylov_room, leading_eigenpairs
from observatory.weights.scatter import Scatter
from observatory.weights.trajectory import column_blocks

NEGLIGIBLE = 1e-12  # times Λ₁T: directions of smaller eigenvalues are rounding noise
MATRIX_SHARE = 0.1  # of the memory of the rows that their scatter matrix may take
KRYLOV_WIDTH = 10  # vectors that are multiplied together


@dataclass(frozen=True, eq=False)
class Components:
    """Spectrum of the covariance Σ of T snapshots, and the motion along its leading directions."""

    variance: Tensor  # σ_i², (r,), r ≥ k: all that are known, falling, divisor T - 1, weight units squared
    projections: Tensor  # θ_i(t) of the leading ones, (T, k), weight units
    total: Tensor  # Tr Σ, scalar, over all weights
    squares: Tensor  # Tr Σ², scalar

    @property
    def participation_ratio(self) -> Tensor:
        """(Tr Σ)²/Tr Σ²: the number of directions that share the variance."""
        return self.total.square() / self.squares


def lift(rows: Tensor, projections: Tensor) -> Tensor:
    """Unit directions p_i = Zᵀu_i/√Λ_i in weight space, from the projections on them.

    Args:
        rows: (T, P), centred or not.
        projections: of centred components, (T, k).

    Returns:
        Shape (k, P), float32 or the type of `rows`, whichever is finer.
    """
    weights = (projections / projections.square().sum(0)).mT  # (k, T): u_iᵀ/√Λ_i, orthogonal to constants
    directions = rows.new_empty(
        len(weights), rows.shape[1], dtype=torch.promote_types(rows.dtype, torch.float32)
    )
    start = 0
    for block in column_blocks(rows):
        stop = start + block.shape[1]
        directions[:, start:stop] = weights @ block
        start = stop
    return directions


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

    They come from the scatter matrix K of the shorter side, n × n with n = min(T, P), in float64: from K
    itself where all are asked for, or where it is small beside the rows; otherwise by Lanczos' method, which
    has the leading ones without K. Then the rows, the result and all between take 1.2 times the memory of
    float32 rows (tensors, 20 components of 1000 × 2500; for any shape 8n(2k + 60) bytes and some
    hundredths); the buffers of the BLAS come to it, a few MB whatever the size.

    Args:
        rows: (T, P).
        count: number k of directions; default all that are not rounding noise.
        trend: keep a linear trend in time; without it the components are those of the rest.
    """
    scatter = Scatter(rows, trend)
    if count is None or _matrix_is_cheap(rows, count):
        matrix = scatter.matrix()
        total, squares = matrix.trace(), torch.linalg.vector_norm(matrix).square()
        values, vectors = leading_eigenpairs(matrix, scatter.size if count is None else count)
        del matrix
    else:
        draw = torch.Generator().manual_seed(0)
        start = torch.randn(scatter.size, KRYLOV_WIDTH, dtype=torch.float64, generator=draw).to(rows.device)
        values, vectors = dominant_eigenpairs(scatter.times, start, count)
        total, squares = scatter.moments()
    values = values[: _significant(values, len(rows))]
    vectors = vectors[:, : len(values)]
    if scatter.wide:
        projections = vectors * values[: vectors.shape[1]].sqrt()
        directions = lift(rows, projections)
    else:
        projections = torch.cat([block @ vectors for block in scatter.snapshots()])
        directions = vectors.mT
    freedom = len(rows) - 1
    return Components(values / freedom, projections, total / freedom, squares / freedom**2), directions


def _matrix_is_cheap(rows: Tensor, count: int) -> bool:
    size = min(rows.shape)
    small = 8 * size**2 <= MATRIX_SHARE * rows.numel() * rows.element_size()
    return small or 3 * krylov_room(count, KRYLOV_WIDTH) > size


def _significant(values: Tensor, snapshots: int) -> int:
    return int((values > NEGLIGIBLE * values[0] * snapshots).sum())

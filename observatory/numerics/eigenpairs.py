"""A few eigenvectors of a symmetric matrix, in the memory of the matrix itself or without it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

REFLECTIONS = 64  # applied in one product
PART = 256  # rows that are rotated together
MOST_PRODUCTS = 2000


def leading_eigenpairs(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues, falling, and the eigenvectors of the `count` largest ones.

    On a CPU, where less than half of the vectors are asked for, the matrix is brought to tridiagonal form in
    its own memory and is lost; beside it stand count·n numbers instead of the 3n² of a decomposition of
    everything. (Golub, Van Loan, Matrix Computations, 2013, §8.3; LAPACK's dsytrd, dsterf, dstemr, dormqr.)

    Args:
        matrix: symmetric, (n, n), float64.
        count: k.

    Returns:
        (n,) and (n, k), orthonormal columns.
    """
    n = len(matrix)
    if matrix.is_cuda or 2 * count > n or n < 4 or not matrix.is_contiguous():
        values, vectors = torch.linalg.eigh(matrix)
        return values.flip(0), vectors.flip(1)[:, :count]
    from scipy.linalg import eigh_tridiagonal, eigvalsh_tridiagonal, lapack

    mine = matrix.detach().numpy().T  # symmetric: the same matrix in the order that LAPACK reads
    packed, diagonal, off, tau, _ = lapack.dsytrd(mine, lower=1, lwork=32 * n, overwrite_a=1)
    values = eigvalsh_tridiagonal(diagonal, off)[::-1]
    vectors = eigh_tridiagonal(diagonal, off, select="i", select_range=(n - count, n - 1))[1][:, ::-1]
    vectors = np.array(vectors, order="F")
    # Q = H₁ ... H_{n-1} with Hᵢ in column i below the diagonal: the last block of reflections comes first
    for start in reversed(range(0, n - 1, REFLECTIONS)):
        stop = min(start + REFLECTIONS, n - 1)
        block, below = packed[start + 1 :, start:stop], vectors[start + 1 :]
        done, _, _ = lapack.dormqr("L", "N", block, tau[start:stop], below, REFLECTIONS * max(count, 1))
        vectors[start + 1 :] = done
    return torch.from_numpy(values.copy()), torch.from_numpy(vectors)


def krylov_room(count: int, width: int) -> int:
    """How many vectors `dominant_eigenpairs` keeps for `count` eigenpairs from `width` starting vectors."""
    return count + 5 * width


def dominant_eigenpairs(
    product: Callable[[Tensor], Tensor], start: Tensor, count: int, *, tolerance: float = 1e-8
) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of a positive semi-definite operator A, and their vectors, without its matrix.

    Block Lanczos with all vectors orthogonalised, and thick restarts: when the room is used up, the leading
    Ritz vectors and the last block stay. (Zhou, Saad 2008, Numer. Algorithms 47, 341.)

    Args:
        product: from vectors (n, b) to A times them, (n, b).
        start: random vectors, (n, b), float64.
        count: k; n is at least twice the vectors of `krylov_room`.
        tolerance: ‖Ap - λp‖/λ of the pairs that are returned; eigenvalues are as good as its square over
            their relative gap. Below the rounding error n·10⁻¹⁶ of the largest one nothing can be told.

    Returns:
        Eigenvalues (k,), falling, and unit eigenvectors (n, k).

    Raises:
        RuntimeError: without convergence after 2000 products of b vectors.
    """
    n, width = start.shape
    room, kept = krylov_room(count, width), count + width
    basis = start.new_empty(n, room)
    basis[:, :width] = torch.linalg.qr(start).Q
    projected = start.new_zeros(room, room)  # basisᵀ A basis
    known, have = 0, width  # vectors whose images are known, and all
    for _ in range(MOST_PRODUCTS):
        mine = basis[:, :have]
        image = product(basis[:, known:have])
        projected[:have, known:have] = overlap = mine.mT @ image
        projected[known:have, :have] = overlap.mT
        following, remainder = _orthonormal(image, mine)
        values, vectors = torch.linalg.eigh(projected[:have, :have])
        scale = values[-1].clamp_min(torch.finfo(values.dtype).tiny)
        residual = (remainder @ vectors[known:, -count:]).norm(dim=0)
        allowed = (tolerance * values[-count:]).clamp_min(n * torch.finfo(values.dtype).eps * scale)
        if have >= count and bool((residual <= allowed).all()):
            return values[-count:].flip(0), mine @ vectors[:, -count:].flip(1)
        if have + width > room:
            for part in basis.split(PART):  # in place: no second basis stands beside it
                part[:, :kept] = part[:, :have] @ vectors[:, -kept:]
            projected.zero_().diagonal()[:kept] = values[-kept:]
            have = kept
        basis[:, have : have + width] = following
        known, have = have, have + width
    raise RuntimeError(
        f"{count} eigenpairs of an operator of {n} dimensions did not converge: relative residual "
        f"{float((residual / scale).max()):.1e} after {MOST_PRODUCTS} products"
    )


def _orthonormal(image: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Q, R with QR = image - basis basisᵀ image and Q orthogonal to the basis, also where little is left."""
    rest = image - basis @ (basis.mT @ image)
    rest -= basis @ (basis.mT @ rest)
    unit, first = torch.linalg.qr(rest)
    unit -= basis @ (basis.mT @ unit)  # a remainder of rounding noise is not orthogonal to anything
    unit, second = torch.linalg.qr(unit)
    return unit, second @ first

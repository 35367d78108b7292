"""All eigenvalues of a symmetric matrix and a few of its eigenvectors, in the memory of the matrix itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

REFLECTIONS = 64  # applied in one product


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

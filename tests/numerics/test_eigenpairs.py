"""Eigenpairs in the memory of the matrix, against a decomposition of everything."""

from __future__ import annotations

import pytest
import torch

from observatory.numerics.eigenpairs import leading_eigenpairs


@pytest.mark.parametrize(("n", "count"), [(3, 1), (4, 2), (65, 1), (66, 20), (200, 7), (200, 150)])
def test_pairs_are_those_of_the_whole_decomposition(n: int, count: int) -> None:
    """To some n·ε of the largest eigenvalue; the vectors up to that over the gaps, by what they do."""
    rows = torch.randn(n, 3 * n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    matrix = rows @ rows.T
    values, vectors = leading_eigenpairs(matrix.clone(), count)
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    scale = float(expected[0]) * n * 2.3e-16
    torch.testing.assert_close(values, expected, rtol=0, atol=10 * scale)
    assert vectors.shape == (n, count)
    torch.testing.assert_close(matrix @ vectors, vectors * values[:count], rtol=0, atol=10 * scale)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_matrix_of_low_rank_keeps_its_vectors() -> None:
    """As the Gram matrix of a drift: most eigenvalues are zero."""
    rows = torch.randn(120, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = rows @ rows.T
    values, vectors = leading_eigenpairs(matrix.clone(), 5)
    torch.testing.assert_close(matrix @ vectors, vectors * values[:5], rtol=0, atol=1e-11)
    assert float(values[2]) < 1e-12 * float(values[0])

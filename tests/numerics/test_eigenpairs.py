"""Some eigenpairs, in the memory of the matrix or without it, against a decomposition of everything."""

from __future__ import annotations

import pytest
import torch

from observatory.numerics.eigenpairs import dominant_eigenpairs, krylov_room, leading_eigenpairs


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


@pytest.mark.parametrize("falling", [0.0, 0.5, 8.0])
@pytest.mark.parametrize(("count", "width"), [(1, 1), (6, 4), (20, 10)])
def test_pairs_of_an_operator_are_those_of_its_matrix(falling: float, count: int, width: int, device) -> None:
    """For spectra of noise, of power laws, and where only the first few are more than rounding noise."""
    draw = torch.Generator().manual_seed(count)
    n = 2 * krylov_room(count, width)
    rows = torch.randn(n, 2 * n, dtype=torch.float64, generator=draw)
    rows = (rows * torch.arange(1, 2 * n + 1) ** -falling).to(device)
    matrix = rows @ rows.T
    start = torch.randn(n, width, dtype=torch.float64, generator=draw).to(device)
    values, vectors = dominant_eigenpairs(lambda v: matrix @ v, start, count)
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:count]
    rounding = float(expected[0]) * n * 2.3e-16
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=10 * rounding)
    residual = (matrix @ vectors - vectors * values).norm(dim=0)
    assert bool((residual <= 1.1e-8 * values + 10 * rounding).all())
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(count).to(vectors), rtol=0, atol=1e-12)


def test_an_operator_of_low_rank_is_exhausted_without_harm() -> None:
    """The remainder after its image is rounding noise, from which no direction may be taken twice."""
    rows = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for product in (lambda v: rows @ (rows.T @ v), lambda v: 0 * v, lambda v: v):
        values, vectors = dominant_eigenpairs(product, start, 8)
        torch.testing.assert_close(product(vectors), vectors * values, rtol=0, atol=1e-11)
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(8).to(vectors), rtol=0, atol=1e-12)


def test_an_operator_that_is_not_symmetric_is_not_iterated_for_ever(monkeypatch) -> None:
    monkeypatch.setattr("observatory.numerics.eigenpairs.MOST_PRODUCTS", 3)
    draw = torch.Generator().manual_seed(2)
    matrix = torch.rand(100, 100, dtype=torch.float64, generator=draw)
    start = torch.randn(100, 4, dtype=torch.float64, generator=draw)
    with pytest.raises(RuntimeError, match=r"4 eigenpairs of an operator of 100 dimensions did not converge"):
        dominant_eigenpairs(lambda v: matrix @ v, start, 4)

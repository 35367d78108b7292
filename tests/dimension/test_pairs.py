"""Neighbours from every pair once: those of the definition, whatever the memory, ties and precision."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from observatory.dimension import levina_bickel, nearest_neighbours, two_nn
from observatory.dimension.pairs import ENTRY_BYTES, TILE, nearest_by_pairs

N = 2 * TILE + 300  # three tiles at least, the last of them narrower


def by_definition(x: Tensor, k: int) -> Tensor:
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(torch.inf).sort(1).values[:, :k]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("entries", [100 * N * 10, N * 12], ids=["at once", "sorted in between"])
def test_the_nearest_are_found_but_in_few_rows(dtype, tolerance, entries, generator):
    x = torch.randn(N, 12, dtype=torch.float64, generator=generator)
    squares, indices = nearest_by_pairs(x.to(dtype), 10, entries * ENTRY_BYTES)
    found = ~squares[:, 0].isnan()
    assert found.double().mean() > 0.98  # bounds are three deviations up: 0.5 % fail
    expected = by_definition(x, 10)
    torch.testing.assert_close(squares.sqrt()[found], expected[found], rtol=tolerance, atol=0)
    between = (x[:, None] - x[indices]).square().sum(-1).sqrt()
    torch.testing.assert_close(between[found], expected[found], rtol=tolerance, atol=0)
    near = nearest_neighbours(x, 10, dtype=dtype)  # rows not found are searched again
    torch.testing.assert_close(near.distances, expected, rtol=tolerance, atol=0)


def corners(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (N, 40), generator=generator).double()  # ten distances or so in all


def simplex(generator: torch.Generator) -> Tensor:
    return torch.eye(TILE + 50, dtype=torch.float64)  # one


def uneven_simplex(generator: torch.Generator) -> Tensor:
    """Distances that differ by 1e-9 of them, and a close pair for which their last bits are given up."""
    x = simplex(generator)
    x = x + 1e-9 * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    x[0] = x[1] + 1e-3 * x[2]
    return x


@pytest.mark.parametrize("make", [corners, simplex, uneven_simplex])
def test_ties_are_no_loss(make, generator):
    x = make(generator)
    near = nearest_neighbours(x, 12)
    torch.testing.assert_close(near.distances, by_definition(near.points, 12), rtol=1e-10, atol=0)


def test_error_bars_come_later_and_are_those_of_enough_neighbours(generator):
    x = torch.randn(300, 5, dtype=torch.float64, generator=generator)
    deep = two_nn(x).standard_error
    torch.testing.assert_close(two_nn(nearest_neighbours(x, 2)).standard_error, deep, rtol=1e-6, atol=0)
    kept = pickle.loads(pickle.dumps(levina_bickel(x)))  # before its error was read
    torch.testing.assert_close(kept.standard_error, levina_bickel(x).standard_error, rtol=1e-12, atol=0)

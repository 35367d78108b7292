"""Neighbours from every pair once: those of the definition, whatever the memory, ties and precision."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from observatory.dimension import levina_bickel, nearest_neighbours, two_nn
from observatory.dimension.pairs import ENTRY_BYTES, TILE, _closest, nearest_by_pairs

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


@pytest.mark.parametrize("make", [corners, simplex])
def test_ties_are_no_loss(make, generator):
    x = make(generator)
    near = nearest_neighbours(x, 12)
    torch.testing.assert_close(near.distances, by_definition(near.points, 12), rtol=1e-10, atol=0)


def test_rows_that_leading_bits_do_not_order_are_given_up():
    close = 1 + 1e-13 * np.random.default_rng(0).permutation(4000)  # 14 of their 52 bits are left out
    apart = np.array([1e-300, 0.5, 0.25, 1.0])  # the least makes the exponents need the room
    value = np.concatenate([close, apart])
    point = np.repeat(np.array([0, 1], dtype=np.int32), [4000, 4])
    squares, others = _closest(2, 3, [(point, np.arange(4004, dtype=np.int32), value)])
    assert np.isnan(squares[0]).all()
    assert squares[1].tolist() == [1e-300, 0.25, 0.5] and others[1].tolist() == [4000, 4002, 4001]


def test_error_bars_come_later_and_are_those_of_enough_neighbours(generator):
    x = torch.randn(300, 5, dtype=torch.float64, generator=generator)
    deep = two_nn(x).standard_error
    torch.testing.assert_close(two_nn(nearest_neighbours(x, 2)).standard_error, deep, rtol=1e-6, atol=0)
    kept = pickle.loads(pickle.dumps(levina_bickel(x)))  # before its error was read
    torch.testing.assert_close(kept.standard_error, levina_bickel(x).standard_error, rtol=1e-12, atol=0)

"""Choosing the smallest of each row: those of a full sort, whatever is equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from observatory.dimension import levina_bickel, nearest_neighbours, two_nn
from observatory.dimension.selection import places, smallest, smallest_values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 6), (50, 3), (1003, 5), (1003, 400)])
@pytest.mark.parametrize("levels", [0, 9, 1], ids=["all different", "many equal", "all equal"])
def test_smallest_of_each_row(dtype, n, k, levels):
    rng = np.random.default_rng(0)
    block = (rng.integers(0, levels, (23, n)) if levels else rng.normal(size=(23, n))).astype(dtype)
    block[3, n // 2] = np.inf
    values, columns = smallest(block, k)
    np.testing.assert_array_equal(values, np.sort(block, axis=1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(block, columns, 1), values)
    assert all(len(set(row)) == k for row in columns.tolist())  # no column twice
    np.testing.assert_array_equal(smallest_values(block.copy(), k), values)


@pytest.mark.parametrize("size", [0, 5, 8, 4003])
@pytest.mark.parametrize("share", [0.0, 0.03, 1.0])
def test_places_are_where_a_mask_is_true(size, share):
    mask = np.random.default_rng(0).random(size) < share
    np.testing.assert_array_equal(places(mask), np.flatnonzero(mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_found_later_are_those_of_the_distances(dtype, generator):
    x = torch.randn(700, 9, dtype=torch.float64, generator=generator)
    x[350:380] = x[:30] + 1e-5  # too close for the product
    near = nearest_neighbours(x, 20, dtype=dtype)
    assert callable(near.located)
    together = nearest_neighbours(x, 20, dtype=dtype, indices=True)
    assert near.searched_again == together.searched_again == (60 if dtype == torch.float32 else 0)
    torch.testing.assert_close(near.indices, together.indices, rtol=0, atol=0)
    torch.testing.assert_close(near.distances, together.distances, rtol=1e-6, atol=0)
    between = (near.points[:, None] - near.points[near.indices]).square().sum(-1).sqrt()
    rounding = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(near.distances, between, rtol=rounding, atol=0)


def test_tensors_of_a_graph_and_views_have_the_dimension_of_their_numbers(generator):
    x = torch.randn(300, 8, dtype=torch.float64, generator=generator)
    turned = x.T.contiguous().T.requires_grad_()  # not contiguous
    for estimate in (two_nn, levina_bickel):
        assert estimate(turned).value.item() == pytest.approx(estimate(x).value.item(), rel=1e-12)
        assert estimate(x[::2]).value.item() == pytest.approx(
            estimate(x[::2].clone()).value.item(), rel=1e-12
        )

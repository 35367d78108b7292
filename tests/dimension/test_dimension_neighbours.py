"""The neighbour pass: exact distances, whatever the chunks, the precision and the geometry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from observatory.dimension import levina_bickel, nearest_neighbours, two_nn
from observatory.dimension.neighbours import distinct_rows, reduced


def by_definition(x: Tensor, k: int) -> Tensor:
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(torch.inf).sort(1).values[:, :k]


@pytest.mark.parametrize(
    ("n", "d", "k"),
    [
        (400, 2, 10),
        (3000, 7, 2),
        (1500, 8, 2),
        (2500, 8, 2),
        (400, 30, 64),
        (70, 30, 69),
        (200, 500, 5),
        (50, 2000, 5),
    ],
)  # in seven dimensions by a tree, in eight by products, then distances by products and indices by a tree
def test_distances_are_those_of_the_definition(n, d, k, device, generator):
    x = torch.randn(n, d, dtype=torch.float64, generator=generator).to(device)
    near = nearest_neighbours(x, k, dtype=torch.float64)
    expected = by_definition(x, k)
    torch.testing.assert_close(near.distances, expected, rtol=1e-10, atol=0)
    between = (x[:, None] - x[near.indices]).square().sum(-1).sqrt()
    torch.testing.assert_close(between, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("chunk_bytes", [1, 10**4, 2**28])
def test_chunks_do_not_matter(chunk_bytes, generator):
    x = torch.randn(300, 50, dtype=torch.float64, generator=generator)
    near = nearest_neighbours(x, 20, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(near.distances, nearest_neighbours(x, 20).distances, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1e-9])
def test_tight_clusters_far_apart_are_resolved(dtype, size, device, generator):
    centres = 10 * torch.randn(20, 20, dtype=torch.float64, generator=generator)
    inner = torch.randn(20, 50, 2, dtype=torch.float64, generator=generator) * size
    frames = torch.linalg.qr(torch.randn(20, 20, 2, dtype=torch.float64, generator=generator)).Q
    x = (centres[:, None] + inner @ frames.mT).flatten(0, 1).to(device)
    near = nearest_neighbours(x, 20, dtype=dtype)
    tolerance = 1e-14 / size  # x itself is rounded to ε |x|
    torch.testing.assert_close(near.distances, by_definition(x, 20), rtol=max(1e-10, 100 * tolerance), atol=0)
    assert near.searched_again == (1000 if dtype == torch.float32 or size < 1e-6 else 101)
    assert levina_bickel(near).value.item() == pytest.approx(2.04, abs=0.1)


@pytest.mark.parametrize("sides", [(30, 30), (10, 10, 10), (4, 4, 4, 4, 4)])
def test_ties_in_few_dimensions_are_exact(sides, generator):
    lattice = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in sides))
    lattice = lattice - lattice.mean(0)  # halves: nothing is rounded
    distances = nearest_neighbours(lattice, 40).distances
    torch.testing.assert_close(distances, by_definition(lattice, 40), rtol=0, atol=0)
    x = torch.cat([lattice[::9], torch.randn(700, len(sides), dtype=torch.float64, generator=generator)])
    for dtype in (torch.float32, torch.float64):  # few of its rows are tied
        distances = nearest_neighbours(x, 40, dtype=dtype).distances
        torch.testing.assert_close(distances, by_definition(x, 40), rtol=1e-10, atol=0)


@pytest.mark.parametrize("d", [2, 6, 40])
def test_whole_numbers_are_no_duplicates(d, generator):
    x = torch.randint(0, 17, (2000, d), generator=generator)
    expected = len(x.unique(dim=0))
    kept = distinct_rows(x.double())
    assert len(kept) == len(x[kept].unique(dim=0)) == expected
    assert nearest_neighbours(x.double() / 16, 2).dropped == 2000 - expected


def test_float32_agrees_with_float64(generator):
    x = torch.tanh(torch.randn(1500, 6, generator=generator) @ torch.randn(6, 300, generator=generator))
    for estimate in (two_nn, levina_bickel):
        single = estimate(nearest_neighbours(x, 64, dtype=torch.float32)).value
        torch.testing.assert_close(single, estimate(nearest_neighbours(x, 64)).value, rtol=1e-4, atol=0)


def test_data_in_a_subspace_are_rotated_into_it(generator):
    x = torch.randn(500, 3, dtype=torch.float64, generator=generator)
    wide = x @ torch.randn(3, 400, dtype=torch.float64, generator=generator) + 5
    near = nearest_neighbours(wide, 10)
    assert near.points.shape == (500, 3)
    torch.testing.assert_close(near.distances, by_definition(wide, 10), rtol=1e-10, atol=0)
    full = torch.randn(500, 8, dtype=torch.float64, generator=generator)
    assert reduced(full - full.mean(0)).shape == (500, 8)
    few = torch.randn(40, 700, dtype=torch.float64, generator=generator)
    assert reduced(few).shape == (40, 40)
    torch.testing.assert_close(torch.pdist(reduced(few)), torch.pdist(few), rtol=1e-12, atol=0)


def test_two_clouds_of_very_different_size_keep_their_dimensions(generator):
    small = 1e-8 * torch.randn(500, 4, dtype=torch.float64, generator=generator)
    large = torch.randn(500, 4, dtype=torch.float64, generator=generator)
    near = nearest_neighbours(torch.cat([small + 3, large]), 10)
    expected = by_definition(torch.cat([small + 3, large]), 10)
    torch.testing.assert_close(near.distances, expected, rtol=1e-6, atol=0)  # 3 + 1e-8 is rounded


def test_shifting_rotating_and_scaling_change_no_dimension(generator):
    x = torch.rand(400, 20, dtype=torch.float64, generator=generator).square()
    q = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=generator)).Q
    torch.testing.assert_close(two_nn(3e4 * (x @ q) - 7).value, two_nn(x).value, rtol=1e-9, atol=0)

"""Decimation shows a manifold behind its noise."""

from __future__ import annotations

import math

import pytest
import torch

from observatory.dimension import block_analysis, two_nn


def test_one_block_is_the_whole_and_blocks_are_disjoint(generator):
    x = torch.randn(800, 4, generator=generator, dtype=torch.float64)
    found = block_analysis(x, blocks=(1, 2, 8))
    assert found.points.tolist() == [800, 400, 100]
    assert found.value[0].item() == pytest.approx(two_nn(x).value.item(), rel=1e-12)
    assert found.deviation.isnan().tolist() == [True, False, False]
    # a block of 100 points scatters by about d/√100; eight of them know their mean to a third of that
    assert found.value[2].item() == pytest.approx(4, abs=5 * 0.4 / math.sqrt(8))
    assert 0.1 < found.deviation[2] < 1.2
    assert (found.scale.diff() > 0).all()


def test_noise_about_a_curve_goes_with_the_density(generator):
    angle = 2 * math.pi * torch.rand(4000, 1, generator=generator, dtype=torch.float64)
    curve = torch.cat([angle.cos(), angle.sin(), torch.zeros(4000, 6, dtype=torch.float64)], 1)
    x = curve + 0.003 * torch.randn(4000, 8, generator=generator, dtype=torch.float64)
    found = block_analysis(x, blocks=(1, 8, 64))
    assert found.value[0] > 2.5 and found.value[2] < 1.4


def test_blocks_too_small_are_refused():
    with pytest.raises(ValueError, match="100 samples cannot be cut into"):
        block_analysis(torch.rand(100, 3), blocks=(1, 8))

"""Oscillation across layers against its exact extremes and its null."""

from __future__ import annotations

import math

import pytest
import torch

from observatory.dimension import null_staggered, oscillation, phase_over_seeds


@pytest.mark.parametrize("k", [5, 6, 8, 11, 12, 20])
@pytest.mark.parametrize("slope", [0.0, 0.3, -20.0])
def test_period_two_on_any_line_is_perfect(k, slope):
    layer = torch.arange(1, k + 1, dtype=torch.float64)
    found = oscillation(0.5 * (-1) ** layer + slope * layer + 3)
    assert found.staggered.item() == pytest.approx(1, abs=1e-9)
    assert found.signed > 0 and found.turning_points == k - 2
    assert found.period.item() == pytest.approx(2 if k % 2 == 0 else k / (k // 2))
    if k <= 12:  # all arrangements are compared
        assert found.p_value.item() == pytest.approx(found.p_floor, rel=1e-12)
    else:  # none of those drawn
        assert found.p_value.item() == pytest.approx(1 / 2001)


def test_floor_of_the_p_value_is_that_of_both_phases():
    floors = {k: oscillation(torch.arange(k).double().cos()).p_floor for k in (6, 8, 10)}
    assert floors == {k: pytest.approx(2 * math.factorial(k // 2) ** 2 / math.factorial(k)) for k in floors}
    assert [round(floors[k], 4) for k in floors] == [0.1, 0.0286, 0.0079]


@pytest.mark.parametrize(
    ("k", "mean", "quantile"), [(8, 0.403, 0.908), (12, 0.317, 0.739), (20, 0.236, 0.567), (50, 0.144, 0.350)]
)
def test_null_of_the_staggered_order(k, mean, quantile):
    # 20 000 profiles: errors of 0.002 and 0.005, those of the table are not larger
    found = null_staggered(k)
    assert found == (pytest.approx(mean, abs=0.01), pytest.approx(quantile, abs=0.01))


@pytest.mark.parametrize("k", [8, 12, 20])
def test_white_noise_is_seldom_significant(k, generator):
    found = oscillation(torch.randn(4000, k, generator=generator, dtype=torch.float64))
    share = (found.p_value < 0.05).double().mean().item()
    assert share < 0.06  # 0.05 and three standard errors
    assert share > 0.02
    # turning points of noise; the trend that was removed shifts them by less than their error over K
    assert abs(found.turning_z.mean()) < 0.15 and found.turning_z.std().item() == pytest.approx(1, abs=0.05)


def test_periodogram_finds_a_period_that_is_not_two():
    layer = torch.arange(1, 25, dtype=torch.float64)
    found = oscillation(torch.cos(2 * math.pi * layer / 4))
    assert found.period.item() == 4 and found.staggered < 0.2
    assert found.periodogram.argmax() == 5  # f = 6/24


def test_profiles_are_batched_and_flat_or_unknown_ones_are_said_to_be():
    profiles = torch.stack(
        [torch.arange(8.0), torch.full((8,), torch.nan), (-1.0) ** torch.arange(8)]
    ).double()
    found = oscillation(profiles)
    assert found.staggered.isnan().tolist() == [False, True, False]
    assert found.p_value[0] == 1 and found.p_value[1].isnan() and found.turning_z[1].isnan()
    assert found.signed[2].item() == pytest.approx(-1)  # even layers, l = 2, 4 ..., lie lower
    assert found.p_value[2].item() == pytest.approx(found.p_floor)


def test_phase_repeats_or_not():
    found = phase_over_seeds(torch.tensor([0.5, 0.3, 0.4, 0.6]))
    assert (found.positive, found.seeds) == (4, 4) and found.mean == pytest.approx(0.45)
    assert found.standard_error == pytest.approx(0.5 * (0.05 / 3) ** 0.5)
    with pytest.raises(ValueError, match="two seeds"):
        phase_over_seeds(torch.tensor([0.5]))


def test_too_few_layers_are_refused():
    with pytest.raises(ValueError, match="at least 5 layers"):
        oscillation(torch.ones(4))

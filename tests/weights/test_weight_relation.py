"""The inverse variance-flatness relation and its honest interval."""

from __future__ import annotations

import math

import pytest
import torch

from observatory.weights import fit_relation


def test_power_law_is_recovered():
    flat = torch.logspace(-1, 1, 12).double()
    seen = fit_relation(3 * flat**-4, flat)
    assert seen.exponent == pytest.approx(4, abs=1e-12) and seen.correlation == pytest.approx(-1)
    assert seen.ranks == tuple(range(1, 13)) and seen.excluded == () and math.isnan(seen.low)


def test_components_without_crossing_and_drift_are_left_out_and_listed():
    flat = torch.tensor([9.0, 1.0, 2.0, math.inf, 4.0, 8.0, 0.0])
    variance = flat.nan_to_num(posinf=1.0).clamp_min(1e-3) ** -2.0
    seen = fit_relation(variance, flat, first=2)
    assert seen.ranks == (2, 3, 5, 6) and seen.excluded == (1, 4, 7)
    assert seen.exponent == pytest.approx(2, abs=1e-12)


def test_too_few_components_have_no_exponent():
    assert math.isnan(fit_relation(torch.ones(2), torch.ones(2)).exponent)


def test_block_interval_covers_the_exponent_as_often_as_it_says(generator):
    """Autoregressive projections, σ² = F^(-2): the 95 % interval of ψ must hold 2 in most of 60
    trajectories.
    """
    flat, r, length, trials = torch.logspace(-0.5, 0.5, 6).double(), 0.8, 1500, 60
    x = [torch.randn(trials, 6, generator=generator, dtype=torch.float64)]
    for kick in torch.randn(length - 1, trials, 6, generator=generator, dtype=torch.float64):
        x.append(r * x[-1] + (1 - r * r) ** 0.5 * kick)
    series = torch.stack(x, 1) / flat  # (trials, T, 6)
    tau = torch.full((6,), (1 + r) / (1 - r) / 2)
    inside = 0
    for projections in series:
        seen = fit_relation(
            projections.var(0),
            flat,
            projections=projections,
            correlation_time=tau,
            resamples=200,
            generator=generator,
        )
        assert seen.block == 9  # 2τ
        inside += seen.low <= 2 <= seen.high
    # blocks of 2τ miss part of the correlations: nominal 95 % become about 88 %; 60 trials, ±4 each
    assert inside >= 44

"""Lines and resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from observatory.numerics.statistics import bootstrap, bootstrap_indices, fit_line


def test_line_agrees_with_scipy_for_an_ensemble(generator):
    x = torch.randn(3, 20, generator=generator, dtype=torch.float64)
    y = 2 * x + torch.randn(3, 20, generator=generator, dtype=torch.float64)
    fit = fit_line(x, y)
    for k in range(3):
        expected = stats.linregress(x[k].numpy(), y[k].numpy())
        seen = [fit.slope, fit.intercept, fit.slope_error, fit.intercept_error, fit.correlation]
        wanted = [
            expected.slope,
            expected.intercept,
            expected.stderr,
            expected.intercept_stderr,
            expected.rvalue,
        ]
        np.testing.assert_allclose([float(s[k]) for s in seen], wanted, rtol=1e-10)


def test_line_through_two_points_has_no_error_bar():
    fit = fit_line(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))
    assert (fit.slope.item(), fit.intercept.item()) == (2, 1) and fit.slope_error.isnan()
    with pytest.raises(ValueError, match="at least two points, got 1"):
        fit_line(torch.zeros(1), torch.zeros(1))


def test_bootstrap_error_of_a_mean(generator):
    x = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    seen = bootstrap(x, lambda s: s.mean(1), resamples=4000, generator=generator)
    # 4000 resamples know the error to 1/√8000 = 1.1 %
    np.testing.assert_allclose(seen.error, x.std(0, correction=0) / 20, rtol=0.06)
    np.testing.assert_allclose(seen.high - seen.low, 2 * 1.96 * seen.error, rtol=0.1)
    assert torch.equal(seen.estimate, x.mean(0))


def test_blocks_see_the_correlations_that_single_samples_miss(generator):
    r, length = 0.9, 20_000
    x = [torch.zeros((), dtype=torch.float64)]
    for kick in torch.randn(length - 1, generator=generator, dtype=torch.float64):
        x.append(r * x[-1] + math.sqrt(1 - r * r) * kick)
    series = torch.stack(x)
    exact = math.sqrt((1 + r) / (1 - r) / length)
    single = bootstrap(series, lambda s: s.mean(1), resamples=500, generator=generator)
    blocks = bootstrap(series, lambda s: s.mean(1), resamples=500, block=200, generator=generator)
    assert blocks.error.item() == pytest.approx(
        exact, rel=0.25
    )  # 100 blocks: √(2/100)/2 = 7 %, bias τ/block 5 %
    assert single.error.item() < 0.4 * exact


def test_blocks_are_runs_of_consecutive_indices(generator):
    indices = bootstrap_indices(10, 50, block=4, generator=generator)
    assert indices.shape == (50, 10) and indices.max() <= 9
    steps = (indices[:, 1:] - indices[:, :-1]) % 10
    assert (steps[:, [0, 1, 2, 4, 5, 6, 8]] == 1).all()
    with pytest.raises(ValueError, match="between 1 and the number of samples 10, got 11"):
        bootstrap_indices(10, 5, block=11)


def test_resamples_without_a_value_do_not_spoil_the_interval(generator):
    x = torch.tensor([0.0, 1.0, 2.0, 3.0])
    seen = bootstrap(x, lambda s: 1 / s.min(1).values.reciprocal().isinf().logical_not(), generator=generator)
    assert seen.low.isfinite()

"""Convolution equations against substitution, closed forms and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from observatory.numerics.correlate import correlation, correlation_sums
from observatory.numerics.volterra import convolve, solve_first_kind, solve_second_kind, solve_toeplitz


def by_substitution(column: Tensor, rhs: Tensor) -> Tensor:
    """The obvious O(n²) recursion."""
    c, b = column.numpy(), rhs.numpy()
    x = np.zeros_like(b)
    for i in range(len(b)):
        x[i] = (b[i] - c[1 : i + 1][::-1] @ x[:i]) / c[0]
    return torch.from_numpy(x)


@pytest.mark.parametrize("n", [1, 2, 511, 512, 513, 3000, 20_000])
def test_divide_and_conquer_equals_substitution(n):
    t = torch.arange(n, dtype=torch.float64) * 0.01
    column = torch.exp(-t) * torch.cos(2 * t)
    column[0] /= 2
    rhs = torch.sin(t) + 0.1 * torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = by_substitution(column, rhs)
    torch.testing.assert_close(
        solve_toeplitz(column, rhs), expected, rtol=0, atol=1e-9 * float(expected.abs().max())
    )


def test_lanes_are_solved_as_if_alone():
    generator = torch.Generator().manual_seed(0)
    column = torch.rand(3, 1, 700, dtype=torch.float64, generator=generator) * 0.01
    column[..., 0] = 1.0
    rhs = torch.randn(5, 700, dtype=torch.float64, generator=generator)
    together = solve_toeplitz(column, rhs)
    assert together.shape == (3, 5, 700)
    torch.testing.assert_close(together[2, 4], by_substitution(column[2, 0], rhs[4]), rtol=1e-11, atol=1e-12)


def test_a_vanishing_diagonal_is_refused():
    with pytest.raises(ValueError, match="c_0 = 0"):
        solve_toeplitz(torch.zeros(4), torch.ones(4))


def test_gradients_of_the_solution():
    generator = torch.Generator().manual_seed(0)
    column, rhs = (torch.randn(2, 9, dtype=torch.float64, generator=generator) for _ in range(2))
    column[:, 0] = 3.0
    inputs = (column.requires_grad_(), rhs.requires_grad_())
    assert torch.autograd.gradcheck(solve_toeplitz, inputs)
    assert torch.autograd.gradgradcheck(solve_toeplitz, inputs)


@pytest.mark.parametrize(("rule", "order"), [("trapezoid", 2), ("midpoint", 2), ("rectangle", 1)])
def test_first_kind_converges_to_the_closed_form(rule, order):
    """∫_0^t s e^{-(t-s)} ds = t - 1 + e^{-t}."""
    errors = []
    for n in (101, 201, 401):
        t = torch.linspace(0, 4, n, dtype=torch.float64)
        g = solve_first_kind(torch.exp(-t), t - 1 + torch.exp(-t), float(t[1]), rule=rule)
        where = t - t[1] / 2 if rule == "midpoint" else t
        errors.append(float((g - where)[1:].abs().max()))
    slope = np.polyfit(np.log([1, 0.5, 0.25]), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.1)


def test_second_kind_converges_to_the_closed_form():
    """g + ∫_0^t g = 1 has g = e^{-t}."""
    errors = []
    for n in (101, 201, 401):
        t = torch.linspace(0, 4, n, dtype=torch.float64)
        g = solve_second_kind(torch.ones_like(t), torch.ones_like(t), float(t[1]))
        errors.append(float((g - torch.exp(-t)).abs().max()))
    assert np.polyfit(np.log([1, 0.5, 0.25]), np.log(errors), 1)[0] == pytest.approx(2, abs=0.05)


def test_convolution_by_definition():
    a, b = torch.randn(2, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor(np.convolve(a, b)[:17])
    torch.testing.assert_close(convolve(a, b), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [40, 40_000])
def test_correlation_by_definition(length):
    a, b = torch.randn(2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = correlation(a, b, lags=30)
    expected = torch.stack([(a[: length - lag] * b[lag:]).mean() for lag in range(30)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_blocks_of_origins_add_up():
    a, b = torch.randn(2, 3, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sums = correlation_sums(a, b, lags=70, block=300)
    assert sums.shape == (3, 4, 70)
    count = torch.arange(1000, 930, -1)
    torch.testing.assert_close(sums.sum(-2) / count, correlation(a, b, lags=70), rtol=0, atol=1e-12)
    assert sums[1, 3, 69].item() == pytest.approx(float((a[1, 900:931] * b[1, 969:]).sum()), abs=1e-11)


@pytest.mark.slow
def test_cost_is_nearly_linear_up_to_a_million_lags():
    import time

    seconds, sizes = [], [2**16, 2**18, 10**6]
    for n in sizes:
        t = torch.arange(n, dtype=torch.float64) * 0.01
        column = torch.exp(-t)
        column[0] /= 2
        start = time.perf_counter()
        solve_toeplitz(column, torch.sin(t))
        seconds.append(time.perf_counter() - start)
    assert seconds[-1] < 5
    assert np.polyfit(np.log(sizes), np.log(seconds), 1)[0] < 1.3

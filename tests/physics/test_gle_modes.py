"""Modes of the embedded equation: closed forms in a harmonic well, and what rare positions know."""

from __future__ import annotations

import math

import pytest
import torch

from observatory.physics.gle import DoubleWell, Flat, Harmonic, exponential_kernel, simulate
from observatory.physics.gle.linear import powers, transition
from observatory.physics.gle.modes import Modes, embedded_modes

TRUTH = (0.05, 1.0, 0.1)  # m, γ, τ of the sweep over time steps


WELL = {"mass": 1.0, "gamma": 10.0, "tau": 0.1}  # in U = x²: λ = 0.2, then 4.9 ± 8.8i


def harmonic_modes(count: int = 12) -> Modes:
    return embedded_modes(Harmonic(2.0), **WELL, kT=1.0, count=count, degree=14, order=13)


def harmonic_transition(dt: float) -> torch.Tensor:
    m, k = torch.tensor(1.0).double(), torch.tensor(2.0).double()
    return transition(exponential_kernel([10.0], [0.1]), m, k, dt)


def test_rates_in_a_harmonic_well_are_those_of_the_linear_equation():
    """The three of (x, v, f), and sums of them."""
    linear = -torch.linalg.eigvals(harmonic_transition(0.1)).log() / 0.1
    rates = harmonic_modes(60).rates
    assert float(rates[0].abs()) < 1e-9
    for rate in [*linear, 2 * linear[linear.real.argmin()]]:
        assert float((rates - rate).abs().min()) < 1e-6


def test_correlation_and_likelihood_in_a_harmonic_well_are_gaussian():
    """⟨xx⟩ and ⟨x²x²⟩ - ⟨x²⟩² = 2⟨xx⟩²; ln p of five positions is that of a normal distribution."""
    modes, dt = harmonic_modes(), 3.0
    t = dt * torch.arange(1, 5, dtype=torch.float64)
    expected = powers(harmonic_transition(dt), 5)[:, 0, 0] / 2
    x = modes.grid
    torch.testing.assert_close(modes.correlation(x, x, t), expected[1:], rtol=0, atol=1e-7)
    square = x.square() - 0.5
    torch.testing.assert_close(modes.correlation(square, square, t), 2 * expected[1:] ** 2, rtol=0, atol=1e-7)
    left_out = math.exp(-dt * float(modes.rates.real.max()))  # 1.4e-3
    place = torch.tensor([[400, 420, 395, 380, 430], [410, 390, 400, 405, 370]])
    lag = (torch.arange(5)[:, None] - torch.arange(5)).abs()
    zero = torch.zeros(5, dtype=torch.float64)
    joint = torch.distributions.MultivariateNormal(zero, expected[lag]).log_prob(x[place])
    alone = torch.distributions.Normal(0.0, math.sqrt(0.5)).log_prob(x[place]).sum(1)
    torch.testing.assert_close(modes.log_likelihood(x[place], dt), joint - alone, rtol=0, atol=left_out)


def test_what_does_not_confine_has_no_modes():
    with pytest.raises(ValueError, match="does not confine"):
        embedded_modes(Flat(), mass=1.0, gamma=1.0, tau=1.0, kT=1.0)


def in_double_well(parameters: tuple[float, float, float]) -> Modes:
    m, gamma, tau = parameters
    return embedded_modes(DoubleWell(2.0), mass=m, gamma=gamma, tau=tau, kT=1.0, count=10)


def recorded(dt: float, samples: int) -> torch.Tensor:
    return simulate(
        exponential_kernel([1.0], [0.1]), DoubleWell(2.0), mass=0.05, kT=1.0, step=0.01, samples=samples,
        lanes=4096, stride=round(dt / 0.01), dtype=torch.float32,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip


def scores(x: torch.Tensor, dt: float, step: float = 0.02) -> torch.Tensor:
    """∂ln p/∂(ln m, ln γ, ln τ) of each trajectory at the truth, (3, P)."""
    found = []
    for k in range(3):
        ends = [
            tuple(v * math.exp(sign * step * (j == k)) for j, v in enumerate(TRUTH)) for sign in (1.0, -1.0)
        ]
        up, down = (in_double_well(end).log_likelihood(x, dt) for end in ends)
        found.append((up - down) / (2 * step))
    return torch.stack(found)


@pytest.mark.slow
def test_positions_twenty_memory_times_apart_know_the_memory():
    """100 000 of them: no estimator can know ln τ better than to 0.09, and the likelihood does.

    The mean score of simulated data vanishes: simulation and modes are the same equation. Two other sets,
    whose correlations of x, U' and U are as near to the data's as the true ones, are excluded by it.
    """
    x = recorded(2.0, 25)
    each = scores(x, 2.0)
    assert bool((each.mean(1).abs() < 4 * each.std(1) / 64).all())
    bound = torch.linalg.inv(len(x) * torch.cov(each)).diagonal().sqrt()
    assert 0.07 < float(bound[2]) < 0.11 and float(bound[1]) < 0.05
    best = in_double_well(TRUTH).log_likelihood(x, 2.0).sum()
    for alias in ((0.013, 1.15, 0.03), (0.04, 1.1, 0.09)):
        assert float(in_double_well(alias).log_likelihood(x, 2.0).sum() - best) < -3


@pytest.mark.slow
def test_positions_as_far_apart_as_crossings_do_not():
    """Δt = 50 τ, the time to cross the barrier: 65 000 positions leave τ open by a factor of two and more."""
    x = recorded(5.0, 16)
    bound = torch.linalg.inv(len(x) * torch.cov(scores(x, 5.0))).diagonal().sqrt()
    assert float(bound[2]) > 0.35  # 95 % is a factor of e^{±0.7}
    best = in_double_well(TRUTH).log_likelihood(x, 5.0).sum()
    for alias in ((0.013, 1.15, 0.03), (0.04, 1.1, 0.09)):
        assert abs(float(in_double_well(alias).log_likelihood(x, 5.0).sum() - best)) < 3

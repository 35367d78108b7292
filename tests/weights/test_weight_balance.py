"""Circulation in the stationary state of SGD on a finite training set."""

from __future__ import annotations

import pytest
import torch

from observatory.solvable.online_regression import (
    continuum_covariance,
    finite_set_covariance,
    simulate_finite_set,
)
from observatory.weights import (
    circulation,
    commutator_ratio,
    entropy_production,
    observed_circulation,
    rotation_frequency,
)
from observatory.weights.balance import circulation_of_lagged


@pytest.fixture(params=[0, 1])
def training_set(request) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(request.param)
    x = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(12, generator=generator, dtype=torch.float64)
    return x, y - x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0]


def test_circulation_of_an_ensemble_is_the_exact_one(training_set, generator):
    x, residuals = training_set
    sigma = finite_set_covariance(x, residuals, learning_rate=0.1, batch_size=2)
    exact = circulation(x.T @ x / 12, sigma)
    _, lagged = simulate_finite_set(
        x,
        residuals,
        learning_rate=0.1,
        batch_size=2,
        replicas=20_000,
        steps=1300,
        discard=600,
        generator=generator,
    )
    seen = circulation_of_lagged(lagged, learning_rate=0.1)
    assert ((seen - exact).norm() / exact.norm()).item() < 0.03


def test_entropy_production_has_two_equal_expressions(training_set):
    x, residuals = training_set
    hessian = x.T @ x / 12
    sigma = finite_set_covariance(x, residuals, learning_rate=0.1, batch_size=2)
    product = hessian @ sigma
    diffusion, q = (product + product.T) / 2, circulation(hessian, sigma)
    one = entropy_production(diffusion, q, sigma)
    other = -torch.trace(torch.linalg.solve(diffusion, hessian @ q))
    assert one.item() == pytest.approx(other.item(), rel=1e-10) and one > 0


def test_rotation_frequency_is_the_largest_imaginary_eigenvalue(training_set):
    x, residuals = training_set
    hessian = x.T @ x / 12
    sigma = continuum_covariance(hessian, x.T @ (residuals.square()[:, None] * x) / 24, 0.1)
    q = circulation(hessian, sigma)
    expected = torch.linalg.eigvals(q @ torch.linalg.inv(sigma)).imag.abs().max()
    assert rotation_frequency(q, sigma).item() == pytest.approx(expected.item(), rel=1e-10)


def test_commuting_noise_keeps_detailed_balance(training_set):
    x, _ = training_set
    hessian = x.T @ x / 12
    noise = hessian @ hessian + hessian
    sigma = continuum_covariance(hessian, noise, 0.1)
    q = circulation(hessian, sigma)
    assert q.norm() < 1e-12 and commutator_ratio(hessian, noise) < 1e-12
    assert abs(entropy_production(0.05 * noise, q, sigma)) < 1e-12


@pytest.mark.slow
def test_one_long_trajectory_shows_its_circulation(generator):
    """A driven rotation: δ' = (1 - ηH)δ - ηξ with H and the noise in different axes."""
    hessian = torch.diag(torch.tensor([1.0, 0.2])).double()
    noise = torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double()
    eta = 0.5
    kicks = torch.randn(200_000, 2, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(noise).T
    delta, seen = torch.zeros(2).double(), []
    for kick in kicks:
        seen.append(delta)
        delta = delta - eta * (hessian @ delta + kick)
    from observatory.solvable.online_regression import stationary_covariance

    expected = circulation(hessian, stationary_covariance(hessian, noise, eta))
    observed = observed_circulation(torch.stack(seen), learning_rate=eta)
    assert observed[0, 1].item() == pytest.approx(expected[0, 1].item(), rel=0.1)
    assert observed[0, 0] == 0

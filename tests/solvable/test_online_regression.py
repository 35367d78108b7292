"""Linear regression by SGD: closed forms against each other and against ensembles of runs."""

from __future__ import annotations

import pytest
import torch

from observatory.solvable.online_regression import (
    continuum_covariance,
    finite_population_factor,
    finite_set_covariance,
    online_regression,
    simulate_finite_set,
    simulate_online_regression,
    stationary_covariance,
)

CURVATURE = torch.tensor([4, 2, 1, 0.5, 0.25], dtype=torch.float64)
SETTING = {"learning_rate": 0.15, "batch_size": 2, "label_noise": 0.5}
EXACT = [0.030507, 0.021650, 0.018906, 0.017779, 0.017265]


def small_training_set(seed: int, n: int = 12, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.randn(n, generator=generator, dtype=torch.float64)
    return x, y - x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0]


def test_online_variances_feedback_and_excess_error():
    state = online_regression(CURVATURE, **SETTING)
    assert state.variance.tolist() == pytest.approx(EXACT, abs=5e-7)
    assert state.feedback.item() == pytest.approx(0.44127, abs=5e-6)
    assert state.excess.item() == pytest.approx(0.19744, abs=5e-6)
    naive = 0.15 * 0.5**2 / (2 * 2)  # ηs²/(2S), isotropic
    assert naive == pytest.approx(0.009375)
    assert (state.variance > 1.8 * naive).all()


def test_online_excess_is_the_mean_quadratic_form_of_its_variances():
    state = online_regression(CURVATURE, **SETTING)
    assert (CURVATURE * state.variance).sum().item() == pytest.approx(state.excess.item(), rel=1e-12)


def test_online_closed_form_is_batched_and_infinite_beyond_stability():
    states = online_regression(torch.stack([CURVATURE, 3 * CURVATURE]), **SETTING)
    assert states.variance[0].tolist() == pytest.approx(EXACT, abs=5e-7)
    assert states.variance[1].isinf().all() and states.excess[1].isinf()


def test_online_regression_becomes_isotropic_for_small_learning_rates():
    state = online_regression(CURVATURE, learning_rate=1e-6, batch_size=7, label_noise=0.5)
    assert state.variance.tolist() == pytest.approx([1e-6 * 0.25 / (2 * 7)] * 5, rel=1e-5)  # O(ηh)


@pytest.mark.parametrize(
    ("replicas", "steps"), [(1000, 1500), pytest.param(4000, 3000, marks=pytest.mark.slow)]
)
def test_ensemble_of_online_runs_has_the_exact_variances(replicas, steps, generator):
    seen = simulate_online_regression(
        CURVATURE, **SETTING, replicas=replicas, steps=steps, discard=300, generator=generator
    )
    # the flattest direction decorrelates in 2/(ηh) = 53 steps: 1000 · 1200/53 samples give 1 % standard error
    assert seen.tolist() == pytest.approx(EXACT, rel=0.02)


def test_stationary_covariance_solves_its_equation_for_an_ensemble(generator):
    root = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    hessian = root @ root.mT / 10 + 0.1 * torch.eye(5)
    root = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    noise, eta = root @ root.mT, 0.3
    sigma = stationary_covariance(hessian, noise, eta)
    left = hessian @ sigma + sigma @ hessian - eta * hessian @ sigma @ hessian
    assert torch.allclose(left, eta * noise, rtol=0, atol=1e-12)
    sigma = continuum_covariance(hessian, noise, eta)
    assert torch.allclose(hessian @ sigma + sigma @ hessian, eta * noise, rtol=0, atol=1e-12)


def test_noise_proportional_to_the_hessian_gives_an_isotropic_covariance():
    hessian, rho, size, eta = torch.diag(CURVATURE), 0.7, 4, 1e-3
    sigma = stationary_covariance(hessian, rho / size * hessian, eta)
    expected = eta * rho / (size * (2 - eta * CURVATURE))
    assert torch.allclose(sigma, torch.diag(expected), rtol=1e-12, atol=1e-18)


def test_unstable_or_flat_directions_have_no_stationary_state():
    noise = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"eigenvalues of ηH must lie in \(0, 2\), got 0.5 to 2.5"):
        stationary_covariance(torch.diag(torch.tensor([1.0, 5.0])), noise, 0.5)
    with pytest.raises(ValueError, match="project out the flat directions"):
        stationary_covariance(torch.diag(torch.tensor([0.0, 1.0])), noise, 0.5)


@pytest.mark.parametrize("sampling", ["with replacement", "without replacement"])
def test_fixed_point_iteration_agrees_with_the_direct_solution(sampling, monkeypatch):
    x, residuals = small_training_set(3)
    setting = {"learning_rate": 0.05, "batch_size": 3, "sampling": sampling}
    direct = finite_set_covariance(x, residuals, **setting)
    monkeypatch.setattr("observatory.solvable.online_regression.DIRECT_BELOW", 0)
    assert torch.allclose(finite_set_covariance(x, residuals, **setting), direct, rtol=1e-10)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_finite_training_set_agrees_with_sgd_where_additive_noise_does_not(seed, generator):
    x, residuals = small_training_set(seed)
    setting = {"learning_rate": 0.1, "batch_size": 2}
    exact = finite_set_covariance(x, residuals, **setting)
    seen, _ = simulate_finite_set(
        x, residuals, **setting, replicas=4000, steps=1500, discard=700, generator=generator
    )
    hessian = x.mT @ x / 12
    additive = x.mT @ (residuals.square()[:, None] * x) / 12 / 2

    def miss(sigma):
        return float((sigma - exact).norm() / exact.norm())

    one, continuum = (
        stationary_covariance(hessian, additive, 0.1),
        continuum_covariance(hessian, additive, 0.1),
    )
    assert miss(seen) < 0.01
    assert miss(one) > 0.05
    assert miss(continuum) > miss(one)


def test_finite_set_refuses_residuals_of_the_teacher(generator):
    x, residuals = small_training_set(0)
    with pytest.raises(ValueError, match="least-squares"):
        finite_set_covariance(x, residuals + 0.1, learning_rate=0.1, batch_size=2)


def test_finite_population_factor():
    assert finite_population_factor("with replacement", 10, 100) == 1
    assert finite_population_factor("without replacement", 10, 100) == pytest.approx(90 / 99)
    assert finite_population_factor("without replacement", 100, 100) == 0
    with pytest.raises(ValueError, match="batches of 11 cannot"):
        finite_population_factor("without replacement", 11, 10)
    with pytest.raises(ValueError, match="'bootstrap'"):
        finite_population_factor("bootstrap", 1, 10)

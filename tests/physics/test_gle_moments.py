"""Weighted moments: linear models in closed form, and particles whose memory is shorter than the step."""

from __future__ import annotations

import pytest
import torch

from observatory.physics.gle import Harmonic, SimulationFit, exponential_kernel, simulate
from observatory.physics.gle.moments import chosen_lags, moments
from observatory.physics.gle.newton import apart, distances, refine

DELTA = torch.full((2,), 0.2, dtype=torch.float64)
PRIOR = (torch.zeros(2).double(), torch.full((2,), 1e3).double())


def linear(seed: int, lanes: int, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Moments Aθ + L ξ of each trajectory at θ and θ ± 0.2, with common ξ; A and the covariance LLᵀ."""
    generator = torch.Generator().manual_seed(7)
    A = torch.randn(6, 2, dtype=torch.float64, generator=generator)
    L = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    generator.manual_seed(seed)
    noise = torch.randn(lanes, 6, dtype=torch.float64, generator=generator) @ L.T
    step = 0.2 * torch.eye(2, dtype=torch.float64)
    sets = torch.cat([theta[None], theta + step, theta - step])
    return (sets @ A.T)[:, None] + noise, A, L @ L.T


def test_one_step_solves_a_linear_problem_with_the_best_weights():
    """The estimates scatter as (AᵀC⁻¹A)⁻¹(1/P + 1/P') says: 200 repetitions know a variance to 10 %."""
    theta, truth = torch.zeros(2).double(), torch.tensor([0.03, -0.02]).double()
    found = []
    for seed in range(200):
        m, A, C = linear(seed, 400, theta)
        data = linear(1000 + seed, 100, truth)[0][0].mean(0)
        found.append(refine(theta, m, data, DELTA, 100, PRIOR))
    estimates = torch.stack([step.estimate for step in found])
    expected = torch.linalg.inv(A.T @ torch.linalg.solve(C, A)) * (1 / 400 + 1 / 100)
    assert float((estimates.mean(0) - truth).abs().max()) < 5 * float(expected.diagonal().max() / 200) ** 0.5
    ratio = estimates.var(0) / expected.diagonal()
    torch.testing.assert_close(ratio, torch.ones(2).double(), rtol=0, atol=0.5)  # five times √(2/200)
    claimed = torch.stack([torch.linalg.inv(step.information) for step in found]).mean(0) * (1 + 100 / 400)
    torch.testing.assert_close(claimed, expected, rtol=0.05, atol=0)
    misfit = torch.tensor([step.distance / step.freedom for step in found]).mean()
    assert float(misfit) > 1  # at θ = 0, which is not the truth
    assert not torch.equal(estimates[0], estimates[1])


def test_noise_of_slopes_is_no_information():
    """Two moments that do not depend on θ, with independent noise in each difference: none is claimed."""
    generator = torch.Generator().manual_seed(0)
    claimed = []
    for _ in range(50):
        m = torch.randn(5, 500, 4, dtype=torch.float64, generator=generator)
        step = refine(torch.zeros(2).double(), m, torch.zeros(4).double(), DELTA, 500, PRIOR)
        claimed.append(step.information.diagonal().mean())
    naive = 500 * 4 * 2 / (500 * 0.4**2)  # worth · k · variance of a slope
    assert float(torch.stack(claimed).mean()) < 0.5 * naive  # what is left is the clipping at zero


def test_simulations_that_flew_apart_move_nothing():
    m = torch.randn(5, 30, 4, dtype=torch.float64)
    m[3, 2] = torch.nan
    step = refine(torch.ones(2).double(), m, torch.zeros(4).double(), DELTA, 10, PRIOR)
    assert torch.equal(step.estimate, torch.ones(2).double()) and float(step.information.abs().max()) == 0


def test_moments_are_the_correlations_by_definition():
    x = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lags = chosen_lags(20, x.device)
    assert lags.tolist()[:4] == [0, 1, 2, 3] and lags.tolist()[-1] == 19
    found = moments(x, Harmonic(2.0), lags).reshape(3, 5, -1)
    y, U, v = x - x.mean(), x.square() - x.square().mean(), x.diff()
    for k, lag in enumerate(lags.tolist()):
        product = [(a[:, : a.shape[1] - lag] * a[:, lag:]).mean(1) for a in (y, U, v)]
        expected = torch.stack([product[0], 2 * product[0], 4 * product[0], product[1], product[2]], 1)
        torch.testing.assert_close(found[:, :, k], expected, rtol=0, atol=1e-12)


def test_the_nearest_set_is_the_true_one():
    theta = torch.tensor([0.3, -0.2]).double()
    m, A, _ = linear(0, 4000, theta)
    assert int(distances(m, A @ (theta + torch.tensor([0.0, 0.2]).double())).argmin()) == 2


def test_sets_that_flew_apart_are_infinitely_far():
    m, A, _ = linear(0, 400, torch.zeros(2).double())
    m[0, 3] = torch.nan
    distance = distances(m, A[:, 0] * 0.2)
    assert distance[0] == torch.inf and int(distance.argmin()) == 1
    assert bool((distances(m * torch.nan, A[:, 0]) == torch.inf).all())


def test_starts_are_near_and_unlike():
    mass = torch.tensor([0.0, 0.05, 1.0, 0.4]).double()
    chosen = apart(mass, torch.tensor([2.0, 1.0, torch.nan, 3.0]), torch.tensor(1.0), 2)
    assert chosen.tolist() == [1, 3]


def harmonic_fit(dt: float, samples: int, lanes: int, refinements: int) -> dict[str, float]:
    """k = m = kT = 1, γ = 10, τ = ½: data of 1024 lanes, fitted."""
    stride = round(dt / 0.05)
    x = simulate(
        exponential_kernel([10.0], [0.5]), Harmonic(1.0), mass=1.0, kT=1.0, step=0.05, samples=samples,
        lanes=1024, stride=stride, dtype=torch.float32, generator=torch.Generator().manual_seed(11),
    )  # fmt: skip
    fit = SimulationFit(
        dt, 1.0, (0.05, 5.0), [(2.0, 50.0)], [(0.05, 5.0)], step=0.05, lags=30, potential=Harmonic(1.0),
        lanes=128, samples=samples, batch=16, budget=32, refinements=refinements, refining_lanes=lanes,
    )  # fmt: skip
    for _ in range(2 + refinements):
        scalars = fit.advance(x)
    assert int(fit.refinement.taken) == refinements and fit.advance(x) == scalars  # nothing is left to do
    return scalars


def test_refinement_below_the_memory_time_knows_all_three():
    """Δt = τ/2: each within twice its 95 % range, four standard errors, and no range spans over a fifth."""
    scalars = harmonic_fit(0.25, 120, 512, 4)
    for name, value in (("friction", 10.0), ("memory_time", 0.5), ("mass", 1.0)):
        found, low, high = (scalars[f"{name}{end}"] for end in ("", "_low", "_high"))
        assert abs(found - value) < high - low and high < 1.2 * low
    assert scalars["misfit"] < 2


@pytest.mark.slow
def test_refinement_above_the_memory_time_finds_the_aliases_of_the_mass():
    """Δt = 2τ: γ to 5 %, τ to 20 %; masses of 0.07 and of 1 explain the data, as the likelihood says too."""
    scalars = harmonic_fit(1.0, 150, 1024, 6)
    assert scalars["friction"] == pytest.approx(10.0, rel=0.05)
    assert scalars["memory_time"] == pytest.approx(0.5, rel=0.2)
    assert scalars["mass_low"] < 0.1 and scalars["mass_high"] > 0.95
    assert scalars["memory_time_low"] < 0.5 < scalars["memory_time_high"]


@pytest.mark.slow
def test_refinement_recovers_a_swinging_kernel():
    """Γ = 4e^{-t}[cos 3t + sin(3t)/3] seen at ωΔt = 1.5: four unknowns, each within four standard errors."""
    truth = torch.tensor([1.0, 4.0, 1.0, 3.0], dtype=torch.float64)  # m, a, σ, ω
    x = simulate(
        exponential_kernel([], [], cosines=[(4.0, 1.0, 3.0)]), Harmonic(1.0), mass=1.0, kT=1.0, step=0.05,
        samples=150, lanes=1024, stride=10, dtype=torch.float32, generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    fit = SimulationFit(
        0.5, 1.0, (0.2, 5.0), [], [], cosines=[((0.8, 20.0), (0.2, 5.0), (0.6, 15.0))], step=0.05, lags=30,
        potential=Harmonic(1.0), lanes=256, samples=150, batch=20, budget=80, refinements=14,
        refining_lanes=1024,
    )  # fmt: skip
    for _ in range(18):
        scalars = fit.advance(x)
    found = fit.incumbent
    error = (found.parameters - truth).abs()
    assert bool((error < found.high - found.low).all()), (found.parameters, found.low, found.high)
    assert bool((found.high < 1.25 * found.low).all())
    assert scalars["friction"] == pytest.approx(0.8, rel=0.1)  # 2aσ/(1 + ω²σ²)
    assert scalars["misfit"] < 2

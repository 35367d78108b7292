"""The integrator without sampling, by its Lyapunov equation; the embedded process by closed forms."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from observatory.numerics.correlate import correlation
from observatory.physics.gle import (
    DoubleWell,
    Flat,
    Harmonic,
    exponential_kernel,
    free_energy,
    propagator,
    simulate,
)

KERNEL = exponential_kernel([3.0, 5.0], [0.3, 2.0])


def stationary_covariance(kernel, *, stiffness: float, mass: float, step: float) -> np.ndarray:
    """Of (x, v/√(kT/m), ...) at the end of whole steps, from the step map alone."""
    p = propagator(kernel, mass, 1.0, step)
    half_kick = np.eye(p.M.shape[-1])
    half_kick[1, 0] = -float(p.kick) * stiffness / 2
    map_ = half_kick @ p.M.numpy() @ half_kick
    noise = half_kick @ p.R.numpy()
    return solve_discrete_lyapunov(map_, noise @ noise.T)


@pytest.mark.parametrize(("step", "kinetic"), [(0.4, 0.92), (0.1, 0.995), (0.05, 0.99875)])
def test_positions_in_a_harmonic_well_are_exact_at_every_step(step, kinetic):
    """U = x²: ⟨x²⟩ = ½ exactly, m⟨v²⟩/kT = 1 - h²k/4m."""
    covariance = stationary_covariance(KERNEL, stiffness=2.0, mass=1.0, step=step)
    assert covariance[0, 0] == pytest.approx(0.5, abs=1e-6)
    assert covariance[1, 1] == pytest.approx(kinetic, abs=1e-6)


def test_stiff_memory_and_damped_cosines_keep_the_exactness():
    kernel = exponential_kernel([3.0, 5.0], [1e-5, 2.0], instantaneous=0.5, cosines=[(40.0, 0.5, 3.0)])
    covariance = stationary_covariance(kernel, stiffness=2.0, mass=1.0, step=0.2)
    assert covariance[0, 0] == pytest.approx(0.5, abs=1e-6)


def test_simulated_steps_are_those_of_the_map():
    x = simulate(
        KERNEL, Harmonic(2.0), mass=1.0, kT=1.0, step=0.4, samples=4000, lanes=256,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert x.shape == (256, 4000)
    means = x.square().mean(-1)
    assert float(means.mean()) == pytest.approx(0.5, abs=5 * float(means.std()) / 16)


def test_free_particle_with_one_exponential():
    """C_vv from the roots of s² + s/τ + γ/(mτ) = 0, ∫C_vv = kT/γ."""
    gamma, tau, mass, h = 2.0, 0.5, 1.5, 0.02
    x = simulate(
        exponential_kernel([gamma], [tau]), Flat(), mass=mass, kT=1.0, step=h, samples=4000, lanes=1024,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    v = x.diff() / h
    found = correlation(v, lags=301).mean(0)
    s1, s2 = np.roots([1, 1 / tau, gamma / (mass * tau)]).astype(complex)
    t = h * np.arange(301)
    closed = (((s1 + 1 / tau) * np.exp(s1 * t) - (s2 + 1 / tau) * np.exp(s2 * t)) / (s1 - s2)).real
    np.testing.assert_allclose(found, closed / mass, atol=0.012)  # 5 σ of 2·10⁴ correlation times
    integral = float(torch.trapezoid(found, dx=h))
    assert integral == pytest.approx(1 / gamma, rel=0.05)


def test_free_particle_diffuses_at_kT_over_gamma():
    gamma = 2.0
    x = simulate(
        exponential_kernel([gamma], [0.5]), Flat(), mass=1.5, kT=1.0, step=0.05, samples=40, lanes=131_072,
        stride=20, dtype=torch.float32, generator=torch.Generator().manual_seed(0),
    ).double()  # fmt: skip
    msd = (x - x[:, :1]).square().mean(0)
    slope = float((msd[-1] - msd[9]) / (30 * 1.0))
    assert slope == pytest.approx(2 / gamma, rel=0.02)  # standard error √(2/131072) of each end, 0.5 %


def test_parameter_sets_are_simulated_together_with_common_noise():
    gamma = torch.tensor([[1.0], [4.0], [4.0]], dtype=torch.float64)
    tau = torch.tensor([[0.5], [0.5], [0.5]], dtype=torch.float64)
    masses = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    x = simulate(
        exponential_kernel(gamma, tau), DoubleWell(2.0), mass=masses, kT=1.0, step=0.05, samples=200,
        lanes=64, generator=torch.Generator().manual_seed(0), common_noise=True,
    )  # fmt: skip
    assert x.shape == (3, 64, 200)
    assert torch.equal(x[1], x[2])
    assert not torch.equal(x[0], x[1])


def test_stride_thins_the_same_trajectory():
    def run(stride: int, samples: int) -> torch.Tensor:
        return simulate(
            KERNEL, DoubleWell(2.0), mass=1.0, kT=1.0, step=0.05, samples=samples, lanes=8, stride=stride,
            burn_in=30, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    fine, thin = run(1, 120), run(4, 30)
    assert torch.equal(thin, fine[:, 3::4])


def test_equilibrium_start_in_a_double_well():
    x = simulate(
        KERNEL, DoubleWell(2.0), mass=1.0, kT=1.0, step=0.01, samples=1, lanes=200_000,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    grid = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    weight = torch.exp(-DoubleWell(2.0).energy(grid))
    for power in (2, 4):
        exact = float((weight * grid**power).sum() / weight.sum())
        spread = float(x.pow(power).std()) / math.sqrt(200_000)
        assert float(x.pow(power).mean()) == pytest.approx(exact, abs=5 * spread)


@pytest.mark.parametrize("sets", [1, 3])
def test_steps_that_carry_gradients_are_the_same_steps(sets):
    gamma = torch.tensor([[3.0, 5.0]], dtype=torch.float64).repeat(sets, 1)
    arguments = {"mass": 1.0, "kT": 1.0, "step": 0.05, "samples": 50, "lanes": 6, "common_noise": True}
    kernel = exponential_kernel(gamma, [0.3, 2.0])
    plain = simulate(kernel, DoubleWell(2.0), generator=torch.Generator().manual_seed(0), **arguments)
    with_gradient = replace(kernel, gamma=gamma.clone().requires_grad_())
    traced = simulate(with_gradient, DoubleWell(2.0), generator=torch.Generator().manual_seed(0), **arguments)
    torch.testing.assert_close(traced.detach(), plain, rtol=0, atol=1e-12)  # rounding, grown by the barrier
    assert traced.requires_grad and not plain.requires_grad


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_steps_are_the_same_steps():
    for kernel in (KERNEL, exponential_kernel([[3.0, 5.0], [1.0, 2.0]], [0.3, 2.0])):
        runs = [
            simulate(
                kernel, DoubleWell(2.0), mass=1.0, kT=1.0, step=0.05, samples=70, lanes=20, compiled=compiled,
                generator=torch.Generator().manual_seed(0),
            )
            for compiled in (False, True)
        ]  # fmt: skip
        torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=1e-10)


def test_a_tabulated_free_energy_far_from_zero_is_simulated_where_it_lies():
    """Samples about 1000 with ⟨δx²⟩ = ½: the start is drawn from the table, not from a grid about zero."""
    generator = torch.Generator().manual_seed(0)
    table = free_energy(1000 + torch.randn(200_000, dtype=torch.float64, generator=generator) / 2**0.5, 1.0)
    x = simulate(
        KERNEL, table, mass=1.0, kT=1.0, step=0.05, samples=20, lanes=20_000, dtype=torch.float64,
        generator=generator,
    )  # fmt: skip
    assert float(x.mean()) == pytest.approx(1000, abs=0.02)
    assert float(x[:, -1].var()) == pytest.approx(0.5, rel=0.06)

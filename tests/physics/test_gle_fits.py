"""Fits of kernels: to a running friction, and to data by the likelihood of an exact discretisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import cholesky, solve_triangular, toeplitz
from scipy.optimize import minimize_scalar
from scipy.signal import lfilter

from observatory.physics.gle import (
    DoubleWell,
    ExponentialKernel,
    Harmonic,
    HarmonicGLE,
    SimulatedGLE,
    exponential_kernel,
    extract_kernel,
    fit_exponentials,
    simulate,
    whittle_fit,
)
from observatory.physics.gle.kernels import logarithms_of
from observatory.physics.gle.linear import periodogram, powers, spectral_density, transition

ONE = torch.tensor(1.0, dtype=torch.float64)
KERNEL = exponential_kernel([10.0], [0.5])


def oscillator(
    dt: float, samples: int = 65_536, seed: int = 0, kernel: ExponentialKernel = KERNEL
) -> torch.Tensor:
    """k = m = kT = 1, by default γ = 10, τ = ½, by the exact transition of its embedding: no error of Δt."""
    F = transition(kernel, ONE, ONE, dt)
    d = len(F)
    L = torch.linalg.cholesky(torch.eye(d, dtype=torch.float64) * (1 + 1e-13) - F @ F.mT)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, d, dtype=torch.float64, generator=generator) @ L.T
    noise[0] = torch.randn(d, dtype=torch.float64, generator=generator)  # the start is stationary
    eigenvalues, modes = np.linalg.eig(F.numpy())
    driven = noise.numpy() @ np.linalg.inv(modes).T
    paths = [lfilter([1.0], [1.0, -root], column) for root, column in zip(eigenvalues, driven.T, strict=True)]
    return torch.from_numpy((modes[0] @ np.stack(paths)).real.copy())


def test_exponentials_are_found_in_their_own_integral():
    t = 0.02 * torch.arange(2000, dtype=torch.float64)
    kernel = exponential_kernel([3.0, 5.0], [0.3, 2.0])
    fit = fit_exponentials(t, kernel.integral(t), 2)
    torch.testing.assert_close(fit.kernel.gamma, kernel.gamma, rtol=1e-5, atol=0)
    torch.testing.assert_close(fit.kernel.tau, kernel.tau, rtol=1e-5, atol=0)
    assert fit.residual < 1e-8


def test_four_exponentials_through_memory_over_five_decades():
    """The stand-in for alanine nonapeptide: γ_total 3.04·10⁵ u/ps, memory time 341 ps."""
    kernel = exponential_kernel([1282.0, 10_680.0, 43_066.0, 248_812.0], [0.00121, 3.18, 37.4, 409.0])
    t = torch.cat([torch.zeros(1), torch.logspace(-3, 3.5, 4000)]).double()
    fit = fit_exponentials(t, kernel.integral(t), 4)
    assert float(fit.kernel.friction()) == pytest.approx(3.04e5, rel=2e-3)
    assert float(fit.kernel.memory_time()) == pytest.approx(341.0, rel=5e-3)
    assert bool(fit.kernel.admissible())


def swinging() -> ExponentialKernel:
    """Like a molecule in water: negative between one and two tenths, then memory over two decades."""
    return exponential_kernel([2.0, 6.0], [0.5, 5.0], cosines=[(300.0, 0.08, 20.0)])


def test_kernels_that_become_negative_are_found_in_their_own_integral():
    kernel, t = swinging(), 0.005 * torch.arange(6000, dtype=torch.float64)
    assert float(kernel.at(t).min()) < -10 and bool(kernel.admissible())
    fit = fit_exponentials(t, kernel.integral(t), 2, cosines=1)
    torch.testing.assert_close(fit.kernel.cosines, kernel.cosines, rtol=1e-4, atol=0)
    torch.testing.assert_close(fit.kernel.tau, kernel.tau, rtol=1e-4, atol=0)
    assert fit.residual < 1e-7 and fit.form == "2 exponentials and 1 damped cosine"
    alone = fit_exponentials(t, kernel.integral(t), 2)
    assert alone.residual > 100 * fit.residual and alone.form == "2 exponentials"


def test_two_swings_with_noise():
    """Two frequencies, 1 % of noise: each within five of its standard errors."""
    kernel = exponential_kernel([4.0], [3.0], cosines=[(50.0, 0.3, 6.0), (300.0, 0.08, 25.0)])
    t = 0.005 * torch.arange(4000, dtype=torch.float64)
    noise = torch.randn(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    G = kernel.integral(t)
    fit = fit_exponentials(t, G + 0.01 * G.max() * noise, 1, cosines=2)
    off = logarithms_of(fit.kernel) - logarithms_of(kernel)
    assert bool((off.abs() < 5 * fit.log_error).all())
    assert float(fit.log_error.max()) < 0.3  # some 10 points lie within the faster swing


def test_spectrum_of_positions_recorded_often_is_no_leakage():
    """I/S = 1 in each of eight bands, 1024 frequencies each, to 5 standard errors; S falls by 10⁹.

    Without a taper the last band would hold 75 times what it should.
    """
    kernel = exponential_kernel([2.0], [4.0], cosines=[(12.0, 0.5, 5.0)])
    frequency, power = periodogram(oscillator(0.1, 16_384, kernel=kernel)[None])
    ratio = power / spectral_density(transition(kernel, ONE, ONE, 0.1), frequency)
    for band in ratio.chunk(8):
        assert float(band.mean()) == pytest.approx(1.0, abs=5 * 1.05 / len(band) ** 0.5)


def test_likelihood_is_that_of_the_normal_distribution():
    """γ of largest likelihood, the rest known: Whittle's approximation and the exact density of 1024 samples.

    They differ by the ends of the series, a fifth of the standard error here.
    """
    x = oscillator(0.25, 1024)
    frequency, power = periodogram(x[None])

    def model(log_gamma: float) -> torch.Tensor:
        return transition(exponential_kernel([math.exp(log_gamma)], [0.5]), ONE, ONE, 0.25)

    def exact(log_gamma: float) -> float:
        c = powers(model(log_gamma), len(x))[:, 0, 0].numpy()
        factor = cholesky(toeplitz(c), lower=True)
        whitened = solve_triangular(factor, x.numpy(), lower=True)
        return float(np.log(np.diag(factor)).sum() + whitened @ whitened / 2)

    def whittle(log_gamma: float) -> float:
        density = spectral_density(model(log_gamma), frequency)
        return float((density.log() + power / density).sum())

    best = [minimize_scalar(f, bounds=(1.5, 3.0), method="bounded").x for f in (exact, whittle)]
    curvature = (exact(best[0] + 0.02) + exact(best[0] - 0.02) - 2 * exact(best[0])) / 0.02**2
    assert abs(best[1] - best[0]) * curvature**0.5 < 0.6
    assert abs(best[0] - math.log(10)) * curvature**0.5 < 4


@pytest.mark.slow
def test_likelihood_of_memory_that_swings():
    """m = k = 1, an exponential and a cosine whose period is 12 Δt: all within 4 standard errors."""
    kernel = exponential_kernel([2.0], [4.0], cosines=[(12.0, 0.5, 5.0)])
    masses = torch.logspace(-0.7, 0.3, 4, dtype=torch.float64)
    x = oscillator(0.1, 16_384, kernel=kernel)
    fit = whittle_fit(x, 0.1, 1.0, stiffness=1.0, cosines=1, masses=masses)
    found = torch.cat([torch.tensor([fit.mass]).double(), logarithms_of(fit.kernel).exp()]).log()
    off = found - torch.cat([torch.zeros(1).double(), logarithms_of(kernel)])
    assert bool((off.abs() < 4 * fit.log_error).all()), (off, fit.log_error)
    assert float(fit.log_error[-1]) < 0.02 and fit.mass_identified  # the frequency, to 2 %


def test_errors_of_the_direct_fit_are_those_of_white_noise():
    """A hundred noisy copies scatter as each of them claims, to 20 %."""
    t = 0.02 * torch.arange(800, dtype=torch.float64)
    G = exponential_kernel([4.0], [1.0]).integral(t)
    generator = torch.Generator().manual_seed(0)
    fits = [
        fit_exponentials(t, G + 0.05 * torch.randn(800, dtype=torch.float64, generator=generator), 1)
        for _ in range(100)
    ]
    logs = torch.stack([torch.cat([f.kernel.gamma, f.kernel.tau]).log() for f in fits])
    claimed = torch.stack([f.log_error for f in fits]).mean(0)
    torch.testing.assert_close(claimed / logs.std(0), torch.ones(2).double(), rtol=0, atol=0.25)


def test_a_fit_with_too_few_lags_is_refused():
    with pytest.raises(ValueError, match="3 exponentials and 0 damped cosines cannot be fitted to 5 lags"):
        fit_exponentials(torch.arange(5.0), torch.ones(5), 3)


def test_spectral_density_is_the_transform_of_the_correlation():
    """S(ω) = Σ C(n) e^{-iωn}, and its mean over ω is C(0) = 1."""
    F = transition(KERNEL, ONE, ONE, 0.7)
    omega = 2 * torch.pi / 4096 * torch.arange(4096, dtype=torch.float64)
    density = spectral_density(F, omega)
    assert float(density.mean()) == pytest.approx(1.0, abs=1e-12)
    eigenvalues, vectors = torch.linalg.eig(F)
    weights = vectors[0] * torch.linalg.inv(vectors)[:, 0]
    n = torch.arange(4096)
    lags = (weights[:, None] * eigenvalues[:, None] ** n).sum(0).real
    direct = 2 * torch.fft.fft(lags).real - 1
    torch.testing.assert_close(density, direct, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_likelihood_below_the_memory_time_knows_all_three():
    """Δt = τ/2, 65 536 samples: within 3 standard errors, which are 0.9, 0.9 and 1.0 %; friction first."""
    fit = whittle_fit(oscillator(0.25), 0.25, 1.0, stiffness=1.0)
    logs = torch.tensor([fit.mass, float(fit.gamma), float(fit.tau)]).log()
    truth = torch.tensor([1.0, 10.0, 0.5]).log()
    assert bool(((logs - truth).abs() < 3 * fit.log_error).all())
    torch.testing.assert_close(fit.log_error, torch.tensor([0.009, 0.009, 0.010]).double(), rtol=0.15, atol=0)
    assert fit.mass_identified


def test_above_the_memory_time_the_mass_is_not_identified():
    """Δt = 2τ: γ within 10 %, τ within 20 %, masses over more than a factor of two as likely as the best."""
    masses = torch.logspace(-1.2, 0.2, 8, dtype=torch.float64)
    fit = whittle_fit(oscillator(1.0, 16_384), 1.0, 1.0, stiffness=1.0, masses=masses)
    assert float(fit.gamma) == pytest.approx(10.0, rel=0.1)
    assert float(fit.tau) == pytest.approx(0.5, rel=0.2)
    assert not fit.mass_identified


@pytest.mark.slow
def test_likelihood_above_the_memory_time_has_several_optima():
    """65 536 samples at Δt = 2τ: aliases at m ≈ 0.09, 0.19, 1, and a false optimum near m = 2.03 with
    τ = 0.62, worse by tens; at Δt = 4τ γ is known to 2 % and the mass over more than a decade."""
    masses = torch.logspace(-1.5, 0.8, 24, dtype=torch.float64)
    fit = whittle_fit(oscillator(1.0), 1.0, 1.0, stiffness=1.0, masses=masses)
    assert float(fit.gamma) == pytest.approx(9.97, abs=5 * 0.0095 * 10)
    assert not fit.mass_identified
    near = fit.optima[fit.losses < 10, 0].exp()
    assert float(near.min()) < 0.25 and float(near.max()) > 0.9
    false = fit.optima[(fit.losses > 5) & (fit.optima[:, 0].exp() > 1.7) & (fit.optima[:, 0].exp() < 2.4)]
    assert len(false) > 0
    assert float(false[0, 2].exp()) == pytest.approx(0.62, abs=0.06)
    rare = whittle_fit(oscillator(2.0), 2.0, 1.0, stiffness=1.0, masses=masses)
    assert float(rare.gamma) == pytest.approx(9.95, rel=0.03)
    low, high = rare.mass_range
    assert high > 5 * low and not rare.mass_identified


@pytest.mark.parametrize("loss", ["whittle", "correlation"])
@pytest.mark.parametrize("cosines", [(), ((3.0, 0.5, 2.0),)])
def test_gradients_of_the_exact_losses(loss, cosines):
    model = HarmonicGLE(0.25, mass=1.3, gamma=(4.0, 3.0), tau=(0.4, 1.5), loss=loss, lags=40, cosines=cosines)
    x = oscillator(0.25, 4096)[None]
    assert_gradients(model, x, h=1e-4)  # 10⁻⁸ of truncation; the spectral density has a rounding of 10⁻¹²


def test_gradients_through_the_integrator():
    """Central differences with h = 10⁻⁵ have an error of 10⁻¹⁰ beside rounding of 10⁻¹⁶/10⁻⁵."""
    x = simulate(
        KERNEL, DoubleWell(2.0), mass=1.0, kT=1.0, step=0.05, samples=60, lanes=32, stride=2,
        generator=torch.Generator().manual_seed(9),
    )  # fmt: skip
    model = SimulatedGLE(
        0.1, 1.0, DoubleWell(2.0), 1.4, (7.0,), (0.3,), cosines=[(2.0, 0.5, 3.0)], stride=2, lags=10,
        lanes=16, samples=40,
    )  # fmt: skip
    assert_gradients(model, x)


def assert_gradients(model: torch.nn.Module, x: torch.Tensor, h: float = 1e-5) -> None:
    model.training_loss(x).backward()
    for parameter in model.parameters():
        found = parameter.grad.reshape(-1)
        for k in range(parameter.numel()):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[k] += sign * h
                    ends.append(float(model.training_loss(x)))
                    parameter.view(-1)[k] -= sign * h
            central = (ends[0] - ends[1]) / (2 * h)
            assert float(found[k]) == pytest.approx(central, rel=1e-6, abs=1e-9)


def test_extraction_and_fit_of_a_sampled_oscillator():
    """Below the memory time direct inversion and an exponential through G find γ = 10, τ = ½."""
    x = simulate(
        KERNEL, Harmonic(1.0), mass=1.0, kT=1.0, step=0.05, samples=20_000, lanes=64, dtype=torch.float32,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    found = extract_kernel(x, 0.05, 1.0, n_lags=80, potential=Harmonic(1.0))
    fit = fit_exponentials(found.t, found.G, 1)
    assert float(fit.kernel.friction()) == pytest.approx(10.0, rel=0.05)
    assert float(fit.kernel.memory_time()) == pytest.approx(0.5, rel=0.05)

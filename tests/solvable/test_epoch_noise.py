"""Reshuffling anti-correlates the noise: flat directions hardly fluctuate."""

from __future__ import annotations

import pytest
import torch

from observatory.solvable.epoch_noise import (
    batch_noise_autocovariance,
    crossover_curvature,
    epoch_noise_variance,
    simulate_quadratic_wells,
    white_noise_variance,
)

CURVATURE = torch.tensor([8, 2, 0.5, 0.1, 0.02], dtype=torch.float64)
RESHUFFLED = [3.36657e-3, 6.16746e-3, 7.94330e-3, 8.57787e-3, 8.71512e-3]
WITH_MOMENTUM = [1.68471e-3, 3.07157e-3, 3.62801e-3, 3.79581e-3, 3.83043e-3]


def test_variances_under_reshuffling():
    seen = epoch_noise_variance(CURVATURE, learning_rate=0.05, batches=20)
    assert seen.tolist() == pytest.approx(RESHUFFLED, abs=5e-9)


def test_variances_under_independent_sampling():
    seen = white_noise_variance(CURVATURE, learning_rate=0.05)
    assert seen.tolist() == pytest.approx([3.90625e-3, 1.31579e-2, 5.06329e-2, 0.250627, 1.250625], rel=1e-5)


def test_variances_under_reshuffling_with_momentum():
    seen = epoch_noise_variance(CURVATURE, learning_rate=0.01, batches=20, momentum=0.9, noise=0.3)
    assert seen.tolist() == pytest.approx(WITH_MOMENTUM, abs=5e-9)


def test_momentum_in_white_noise():
    seen = white_noise_variance(torch.tensor(1.7), learning_rate=0.2, momentum=0.8)
    assert seen.item() == pytest.approx(0.32479, abs=5e-6)


@pytest.mark.parametrize("step", [1e-2, 0.3, 1.2])
def test_closed_form_without_momentum(step):
    r, m, eta = 1 - step, 20, 0.05
    bracket = 1 - 2 * r * (m * (1 - r) - 1 + r**m) / (m * (m - 1) * (1 - r) ** 2)
    seen = epoch_noise_variance(torch.tensor(step / eta, dtype=torch.float64), learning_rate=eta, batches=m)
    # the textbook form loses 1/(ηh)² to cancellation, twice
    assert seen.item() == pytest.approx(eta**2 / (1 - r * r) * bracket, rel=1e-10)


@pytest.mark.parametrize("step", [0.0, 1e-14, 1e-10, 1e-6])
@pytest.mark.parametrize("batches", [2, 20, 1200])
def test_flat_directions_keep_all_digits(step, batches):
    seen = epoch_noise_variance(torch.tensor(step / 0.05), learning_rate=0.05, batches=batches)
    flat = 0.05**2 * (batches + 1) / 6
    assert seen.item() == pytest.approx(flat, rel=max(1e-12, 2 * step * batches))  # first order in ηhM


def test_stiff_directions_feel_white_noise():
    stiff = torch.tensor(8.0)
    seen = epoch_noise_variance(stiff, learning_rate=0.05, batches=20_000)
    assert seen.item() == pytest.approx(white_noise_variance(stiff, learning_rate=0.05).item(), rel=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_flat_and_white_asymptotes_meet_at_the_crossover(momentum):
    setting = {"learning_rate": 1e-3, "momentum": momentum}
    crossover = torch.tensor(crossover_curvature(batches=2000, **setting), dtype=torch.float64)
    flat = epoch_noise_variance(0 * crossover, batches=2000, **setting)
    white = white_noise_variance(crossover, **setting)
    assert white.item() == pytest.approx(
        flat.item(), rel=0.02
    )  # M(1 - β) = 200: corrections of a few per cent


def test_batch_noises_of_an_epoch_add_up_to_zero():
    seen = batch_noise_autocovariance(20, variance=0.3)
    assert seen[0].item() == pytest.approx(0.3)
    assert (seen[0] + 2 * seen[1:].sum()).item() == pytest.approx(0, abs=1e-15)


def test_single_batch_has_no_noise_and_instability_is_infinite():
    h = torch.tensor([1.0, 41.0])
    assert epoch_noise_variance(h, learning_rate=0.05, batches=1).tolist() == [0, torch.inf]
    assert white_noise_variance(h, learning_rate=0.05)[1].item() == torch.inf


@pytest.mark.parametrize(
    ("momentum", "eta", "noise", "expected"), [(0, 0.05, 1.0, RESHUFFLED), (0.9, 0.01, 0.3, WITH_MOMENTUM)]
)
def test_ensemble_under_reshuffling(momentum, eta, noise, expected, generator):
    seen = simulate_quadratic_wells(
        CURVATURE, learning_rate=eta, momentum=momentum, noise=noise, batches=20, sampling="reshuffled",
        replicas=1500, epochs=100, discard=50, generator=generator,
    )  # fmt: skip
    # one epoch is an independent bridge in flat directions: √(2/(1500 · 50)) = 0.5 %
    assert seen.tolist() == pytest.approx(expected, rel=0.02)


def test_ensemble_under_independent_sampling(generator):
    stiff = CURVATURE[:3]
    expected = white_noise_variance(stiff, learning_rate=0.05)
    seen = simulate_quadratic_wells(
        stiff, learning_rate=0.05, batches=20, sampling="independent",
        replicas=500, epochs=250, discard=25, generator=generator,
    )  # fmt: skip
    # slowest: 2/(ηh) = 80 steps between independent samples, 500 · 4500/80 of them: 0.8 % standard error
    assert seen.tolist() == pytest.approx(expected.tolist(), rel=0.03)

"""Crossing times against quadrature, published rates and simulated values."""

from __future__ import annotations

import pytest
import torch

from observatory.physics.gle import (
    DoubleWell,
    Harmonic,
    exponential_kernel,
    grote_hynes_rate,
    overdamped_passage_time,
    passage_time,
)

WELL = DoubleWell(3.0)


def crossing(mass: float, gamma: float, tau: float, *, step: float, duration: float, lanes: int = 2048):
    return passage_time(
        exponential_kernel([gamma], [tau]), WELL, mass=mass, kT=1.0, step=step, duration=duration,
        lanes=lanes, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def test_overdamped_passage_time_by_quadrature():
    assert overdamped_passage_time(WELL, 1.0, 1.0, start=-1, end=1) == pytest.approx(8.880, abs=5e-4)
    flat_bottom = overdamped_passage_time(Harmonic(1e-9), 2.0, 0.5, start=0.0, end=1.0)
    # a flat U over -3 < y: (γ/kT)∫_0^1 (x + 3) dx
    assert flat_bottom == pytest.approx(2.0 / 0.5 * 3.5, rel=1e-6)


@pytest.mark.parametrize(
    ("mass", "gamma", "tau", "time"),
    [(0.01, 1, 0.01, 7.53), (0.01, 1, 0.1, 3.96), (0.01, 1, 1.0, 2.69), (1, 10, 0.5, 52.9)],
)
def test_times_of_grote_and_hynes(mass, gamma, tau, time):
    rate = grote_hynes_rate(exponential_kernel([gamma], [tau]), WELL, mass=mass, kT=1.0)
    assert 1 / rate == pytest.approx(time, rel=2e-3)  # three digits are printed


def test_memory_accelerates_the_crossing():
    """5.3 ± 0.2 against 8.88 without memory; the error of 3000 crossings is 2 %."""
    found = crossing(0.01, 1.0, 0.1, step=0.01, duration=30.0, lanes=512)
    assert found.mean == pytest.approx(5.33, abs=5 * found.error)
    assert 0.05 < found.error < 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mass", "gamma", "tau", "step", "time", "tolerance"),
    [
        (0.01, 1, 0.01, 0.004, 8.880, 0.05 * 8.880),  # the overdamped limit within 5 %
        (0.01, 1, 0.1, 0.0025, 5.3, 0.2),
        (0.01, 1, 1.0, 0.005, 2.78, 0.15),
        (1, 10, 0.5, 0.05, 69.5, 2.5),
    ],
)
def test_simulated_passage_times(mass, gamma, tau, step, time, tolerance):
    duration = 500.0 if mass == 1 else 60.0
    lanes = 4096 if tau == 1.0 else 2048  # long memory: crossings come in bursts
    found = crossing(mass, gamma, tau, step=step, duration=duration, lanes=lanes)
    assert found.mean == pytest.approx(time, abs=tolerance)
    rate = grote_hynes_rate(exponential_kernel([gamma], [tau]), WELL, mass=mass, kT=1.0)
    assert 1 < found.mean * rate < 1.4


@pytest.mark.slow
def test_long_memory_slows_down_with_the_square_of_its_time():
    """τ ≫ γL²/kT: the time rises as τ² (Kappler et al. 2018); only the exponent, between τ = 10 and 40."""
    taus = torch.tensor([10.0, 20.0, 40.0], dtype=torch.float64)
    times = [
        crossing(0.01, 1.0, float(tau), step=0.02, duration=300.0 * float(tau), lanes=256).mean
        for tau in taus
    ]
    logs = torch.tensor(times, dtype=torch.float64).log()
    slope = float((logs[-1] - logs[0]) / (taus[-1] / taus[0]).log())
    assert slope == pytest.approx(2.0, abs=0.35)

"""Rest, drift and random walks."""

from __future__ import annotations

import math

import pytest
import torch

from observatory.solvable.epoch_noise import white_noise_variance
from observatory.weights import (
    StationarityMonitor,
    cosine_match,
    dissipation_of_snapshots,
    dissipation_ratio,
    principal_components,
    random_walk_fractions,
    sampling_band,
)
from observatory.weights.drift import drifts
from observatory.weights.motion import motion_along
from observatory.weights.stationarity import geweke_z, half_window_ratio

ETA, BETA, CURVATURE, MINIMUM = 0.2, 0.8, 1.7, 3.0


def heavy_ball(steps: int, replicas: int, generator: torch.Generator, start: float = MINIMUM):
    """θ (steps, R), gradients before and velocities after each update, in ½h(θ - 3)² with unit white
    noise.
    """
    theta = torch.full((replicas,), start, dtype=torch.float64)
    v = torch.zeros_like(theta)
    positions, gradients, velocities = [], [], []
    for kick in torch.randn(steps, replicas, generator=generator, dtype=torch.float64):
        g = CURVATURE * (theta - MINIMUM) + kick
        positions.append(theta)
        v = BETA * v + g
        theta = theta - ETA * v
        gradients.append(g)
        velocities.append(v)
    return torch.stack(positions), torch.stack(gradients), torch.stack(velocities)


@pytest.mark.parametrize("reference", [0.0, MINIMUM])
def test_momentum_obeys_the_fluctuation_dissipation_relation(reference, generator):
    theta, g, v = (x[500:] for x in heavy_ball(2500, 500, generator))
    assert theta.var().item() == pytest.approx(0.32479, rel=0.01)
    assert white_noise_variance(
        torch.tensor(CURVATURE), learning_rate=ETA, momentum=BETA
    ).item() == pytest.approx(0.32479, abs=5e-6)
    work, kinetic = ((theta - reference) * g).mean(), v.square().mean()
    ratio = dissipation_ratio(work, kinetic, learning_rate=ETA, momentum=BETA)
    assert ratio.item() == pytest.approx(1, abs=0.01)


def test_reference_point_matters_for_the_scatter_only(generator):
    theta, g, v = (x[500:] for x in heavy_ball(1500, 500, generator))
    spread = {
        reference: dissipation_ratio(
            ((theta - reference) * g).mean(0), v.square().mean(0), learning_rate=ETA, momentum=BETA
        ).std().item()
        for reference in (0.0, MINIMUM)
    }  # fmt: skip
    assert spread[MINIMUM] < spread[0.0] / 2


def test_snapshots_alone_give_the_dissipation_ratio(generator):
    theta, g, v = (x[300:] for x in heavy_ball(900, 50, generator))  # 50 replicas are 50 weights
    seen = dissipation_of_snapshots(theta, learning_rate=ETA, momentum=BETA)
    inner = slice(1, -1)
    work = ((theta - theta.mean(0)) * g)[inner].mean()
    expected = dissipation_ratio(work, v[inner].square().mean(), learning_rate=ETA, momentum=BETA)
    assert seen.item() == pytest.approx(expected.item(), rel=1e-9)


def test_monitor_waits_for_rest(generator):
    theta, _, _ = heavy_ball(3000, 40, generator, start=400.0)
    monitor = StationarityMonitor(200)
    rested = None
    for step, weights in enumerate(theta):
        loss = (CURVATURE / 2 * (weights - MINIMUM).square()).mean()
        if monitor.update(weights, lambda value=loss: value, learning_rate=ETA, momentum=BETA):
            rested = step
            break
    assert rested is not None and 400 <= rested <= 1400
    assert monitor.ratio == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="at least 8"):
        StationarityMonitor(3)


def test_monitor_that_a_checkpoint_interrupted_says_the_same(generator, tmp_path):
    weights = torch.randn(40, 6, generator=generator).cumsum(0)
    whole, parts = StationarityMonitor(30), StationarityMonitor(30)
    for step, theta in enumerate(weights):
        if step == 17:
            torch.save(parts.state_dict(), tmp_path / "a.pt")
            parts = StationarityMonitor(30)
            parts.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
        said = [
            one.update(theta, theta.square().sum, learning_rate=0.1, momentum=0.9) for one in (whole, parts)
        ]
        assert said[0] == said[1]
    assert math.isfinite(whole.ratio) and parts.ratio == whole.ratio


def test_random_walk_has_the_fractions_of_cosines_and_is_called_a_drift(generator):
    walk = torch.randn(500, 5000, generator=generator).cumsum(0)
    found, _ = principal_components(walk)
    fractions = (found.variance[:3] / found.total).tolist()
    assert fractions == pytest.approx([0.61, 0.15, 0.067], abs=0.02)
    assert fractions == pytest.approx(random_walk_fractions(3).tolist(), abs=0.02)
    assert drifts(found.projections)
    assert (cosine_match(found.projections[:, :3]) > 0.95).all()


def test_ornstein_uhlenbeck_process_is_no_drift(generator):
    r = torch.exp(torch.tensor(-1 / 5.0)).item()
    x = [torch.randn(5000, generator=generator)]
    for kick in torch.randn(499, 5000, generator=generator):
        x.append(r * x[-1] + (1 - r * r) ** 0.5 * kick)
    rows = torch.stack(x)
    found, _ = principal_components(rows, 20)
    assert not drifts(found.projections)
    motion = motion_along(found.projections, found, every=1, size=5000)
    assert not motion.drift


def test_short_windows_do_not_resolve_correlation_times(generator):
    r = 0.98  # τ_int = 49.5
    x = [torch.randn(2, generator=generator, dtype=torch.float64)]
    for kick in torch.randn(9999, 2, generator=generator, dtype=torch.float64):
        x.append(r * x[-1] + (1 - r * r) ** 0.5 * kick)
    rows = torch.stack(x)

    def resolved(part):
        found, _ = principal_components(part)
        return motion_along(part - part.mean(0), found, every=3, size=2)

    long, walk = resolved(rows), resolved(torch.randn(500, 2, generator=generator).double().cumsum(0))
    assert long.resolved.all() and not walk.resolved.any()
    # every = 3: times are in steps; relative error √(2(2W + 1)/T) with W = 5τ is 32 %, of two series 22 %
    assert long.integrated_time.mean().item() == pytest.approx(3 * 49.5, rel=0.6)


def test_halves_and_means_tell_rest_from_drift(generator):
    x = torch.randn(2000, 3, generator=generator, dtype=torch.float64)
    x[1000:, 1] *= 3
    x[:, 2] += torch.linspace(0, 2, 2000)
    ratio = half_window_ratio(x)
    assert ratio[0].item() == pytest.approx(1, abs=0.25) and ratio[1].item() == pytest.approx(9, rel=0.25)
    z = geweke_z(x.T, torch.full((3,), 0.5))
    assert abs(z[0]) < 4 and abs(z[2]) > 6


def test_isotropic_noise_fills_the_sampling_band(generator):
    x = torch.randn(2000, 200, generator=generator, dtype=torch.float64)
    values = torch.linalg.eigvalsh(x.T.cov())
    band = sampling_band(torch.tensor(1.0).double(), size=200, effective_samples=2000)
    # edges fluctuate by P^(-2/3) = 3 % (Tracy, Widom)
    assert values[0].item() == pytest.approx(band.low.item(), rel=0.06)
    assert values[-1].item() == pytest.approx(band.high.item(), rel=0.06)

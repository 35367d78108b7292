"""The likelihood of rarely recorded positions climbed: a known likelihood, its Fisher information, a well."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from observatory.physics.gle import DoubleWell, SimulationFit, exponential_kernel, simulate
from observatory.physics.gle.modes import DECAYED, LEAST, Modes
from observatory.physics.gle.position_fit import PART, PIECE, PositionFit, _pieces, _slopes
from observatory.physics.gle.repeating import Repeating

LOW, HIGH = torch.full((3,), -3.0).double(), torch.full((3,), 3.0).double()


@dataclass(frozen=True)
class _Normal:
    """Positions 1 to 3 are normal with standard deviations e^θ: maximum and information in closed form."""

    theta: torch.Tensor

    def remainder(self, dt: float) -> float:
        return float(self.theta[0] > 2.5)  # heavier sets are not resolved

    def log_densities(self, x: torch.Tensor, dt: float) -> torch.Tensor:
        return -self.theta - (x[:, 1:] * (-self.theta).exp()).square() / 2


class _World:
    dt = 1.0

    def modes(self, theta: torch.Tensor) -> _Normal:
        return _Normal(theta)


def normal(lanes: int) -> torch.Tensor:
    scale = torch.tensor([1.0, 0.5, 1.0, 3.0]).double()
    return scale * torch.randn(lanes, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def climbed(x: torch.Tensor, sets: list[list[float]], steps: int = 12) -> PositionFit:
    fit = PositionFit(LOW, HIGH, steps=steps, seed=0)
    for _ in range(steps):
        fit.advance(x, _World(), torch.tensor(sets).double())  # type: ignore[arg-type]
    return fit


def test_the_end_is_the_maximum_and_its_error_that_of_fisher():
    """θ = ½ln⟨x²⟩ and standard errors 1/√(2P), from starts of all sides; two that meet count once."""
    x = normal(2000)
    fit = climbed(x, [[2.0, 2.0, -2.0], [-2.0, 1.0, 0.0], [0.5, -1.0, 2.0]])
    best, possible = fit.settled()
    expected = x[:, 1:].square().mean(0).log() / 2
    error = 1 / math.sqrt(2 * len(x))
    # SETTLED nats are left at most: 0.1 standard errors
    torch.testing.assert_close(best, expected, rtol=0, atol=0.1 * error)
    # the squared scores of 2000 normal numbers know their mean to √(15/2000) = 9 %, the error to half of it
    torch.testing.assert_close(fit.bound, torch.full((3,), error).double(), rtol=0.2, atol=0)
    assert possible.shape[0] == 1 and fit.scalars()["arrived"] == 1
    torch.testing.assert_close(possible[0].std(0), fit.bound, rtol=0.06, atol=0)  # five times 1/√8000


def test_what_is_climbed_on_a_part_ends_on_all():
    x = normal(3 * PART // 4)
    fit = climbed(x, [[1.0, 1.0, 1.0]])
    expected = x[:, 1:].square().mean(0).log() / 2
    torch.testing.assert_close(fit.settled()[0], expected, rtol=0, atol=0.1 / math.sqrt(2 * len(x)))
    torch.testing.assert_close(fit.bound, torch.full((3,), (2 * len(x)) ** -0.5).double(), rtol=0.05, atol=0)


def test_an_interrupted_climb_goes_on():
    x, sets = normal(500), torch.tensor([[2.0, 2.0, -2.0]]).double()
    whole = climbed(x, sets.tolist(), 6)
    first, second = (PositionFit(LOW, HIGH, steps=6, seed=0) for _ in range(2))
    for _ in range(3):
        first.advance(x, _World(), sets)  # type: ignore[arg-type]
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.advance(x, _World(), sets)  # type: ignore[arg-type]
    assert torch.equal(second.estimates[0], whole.estimates[0]) and second.done


def test_sets_that_the_modes_do_not_resolve_are_no_start():
    with pytest.raises(ValueError, match="too short for the likelihood"):
        climbed(normal(10), [[2.8, 0.0, 0.0]])
    fit = climbed(normal(500), [[2.8, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert int(fit.log_likelihood.isfinite().sum()) == 1
    edge = climbed(normal(500), [[2.499, 0.0, 0.0]])  # resolved, but not what is beside it
    assert bool(edge.bound.isinf().all()) and float(edge.settled()[1][0].std(0).min()) > 1


def test_a_maximum_at_the_edge_of_the_range_is_reached():
    x = normal(500) * torch.tensor([1.0, 1e-3, 1.0, 1.0])
    best = climbed(x, [[0.0, 0.0, 0.0]]).settled()[0]
    assert float(best[0]) == -3
    torch.testing.assert_close(best[1:], x[:, 2:].square().mean(0).log() / 2, rtol=0, atol=0.1 / 1000**0.5)


def test_long_trajectories_are_cut_and_lose_little():
    x = torch.arange(2 * (3 * PIECE + 10)).reshape(2, -1)
    pieces = _pieces(x)
    assert pieces.shape == (8, 194)  # 778 points in four
    assert torch.equal(pieces[:4].flatten(), x[0, : 4 * 194])
    assert torch.equal(_pieces(x[:, :PIECE]), x[:, :PIECE])


def two_states(rate: float, fast: float) -> Modes:
    """x = ±1 by jumps of this rate, and a mode that has decayed."""
    grid = torch.linspace(-1, 1, 3, dtype=torch.float64)
    phi = torch.stack([torch.ones(3), grid, torch.full((3,), 7.0)], 1).to(torch.complex128)
    overlap = phi[:, :, None] * phi[:, None]
    return Modes(
        torch.tensor([0, 2 * rate, fast]).to(overlap), grid, torch.tensor([0.5, 0, 0.5]).double(), overlap
    )


def test_densities_of_a_two_state_process():
    """p(x'|x)/p(x') = 1 + xx'e^{-2kΔt}; what has decayed to 10⁻⁸ does not count; ratios end at 10⁻²."""
    x = torch.tensor([[1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, -1.0]]).double()
    modes, dt = two_states(0.5, 40.0), 0.7
    expected = (1 + x[:, 1:] * x[:, :-1] * math.exp(-dt)).log()
    torch.testing.assert_close(modes.log_densities(x, dt), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(modes.log_likelihood(x, dt), expected.sum(1), rtol=0, atol=1e-12)
    assert modes.remainder(dt) == pytest.approx(math.exp(-28.0)) and modes.remainder(dt) < DECAYED
    at_once = modes.log_densities(x, 1.0)[:, -1] - modes.log_densities(x[:, 1:], 1.0)[:, -1]
    assert float(at_once.abs().max()) < 1e-12  # jumps have no memory
    sudden = two_states(0.002, 1e4).log_densities(x, 0.7)[0]
    assert float(sudden[1]) == pytest.approx(math.log(LEAST))
    assert float(sudden[2]) == pytest.approx(math.log(2), abs=0.01)  # the past is forgotten


def test_the_likelihood_of_two_exponentials_is_refused():
    with pytest.raises(ValueError, match="one exponential"):
        SimulationFit(
            1.0, 1.0, (0.1, 1.0), [(0.1, 1.0)] * 2, [(0.1, 1.0)] * 2, step=0.1, lags=6, refining="likelihood"
        )


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (
            torch.zeros(8, 40).index_fill(1, torch.tensor([7]), torch.nan),
            r"NaN or Inf, first at index \[0, 7\]",
        ),
        (torch.zeros(0, 40), r"got \(0, 40\)"),
        (torch.zeros(8, 6), "6 points have no 6 lags"),
    ],
)
def test_positions_that_are_none_are_refused(x, said):
    fit = SimulationFit(
        1.0, 1.0, (0.1, 1.0), [(0.1, 1.0)], [(0.1, 1.0)], step=0.1, lags=6, potential=DoubleWell(2.0)
    )
    with pytest.raises(ValueError, match=said):
        fit.advance(x)


def test_a_refinement_of_another_name_is_refused():
    with pytest.raises(ValueError, match="one of moments, likelihood, got 'likelyhood'"):
        SimulationFit(
            1.0, 1.0, (0.1, 1.0), [(0.1, 1.0)], [(0.1, 1.0)], step=0.1, lags=6, refining="likelyhood"
        )


TRUTH = torch.tensor([0.05, 1.0, 0.1]).double().log()  # m, γ, τ of `memory_kernel_discretised.yaml`


def recorded(dt: float, samples: int, lanes: int, seed: int) -> torch.Tensor:
    """U₀ = 2 kT."""
    return simulate(
        exponential_kernel([1.0], [0.1]), DoubleWell(2.0), mass=0.05, kT=1.0, step=0.01, samples=samples,
        lanes=lanes, stride=round(dt / 0.01), dtype=torch.float32,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def fitted(x: torch.Tensor, dt: float, refinements: int) -> SimulationFit:
    fit = SimulationFit(
        dt, 1.0, (0.005, 0.5), [(0.2, 5.0)], [(0.01, 1.0)], step=0.01, lags=6, potential=DoubleWell(2.0),
        lanes=512, samples=x.shape[1], batch=16, budget=64, refinements=refinements, refining="likelihood",
    )  # fmt: skip
    for _ in range(4 + refinements):
        fit.advance(x)
    return fit


@pytest.mark.slow
@pytest.mark.parametrize("seed", [6, 7])
@pytest.mark.parametrize(
    ("dt", "samples", "lanes", "refinements"), [(2.0, 25, 4096, 10), (5.0, 16, 81920, 12)]
)
def test_fit_at_twenty_and_at_fifty_memory_times(dt, samples, lanes, refinements, seed):
    """Up to the time in which the barrier is crossed all three are found, as well as any estimator can.

    10⁵ positions at 20 τ and 1.3·10⁶ at 50 τ know γ to 5 % and τ to 10 % (one standard error at the truth).
    The likelihood at its maximum exceeds that at the truth by half of χ² with three degrees of freedom.
    """
    x = recorded(dt, samples, lanes, seed)
    fit = fitted(x, dt, refinements)
    world = Repeating(DoubleWell(2.0), 1, 1.0, dt, 0.01, samples)
    bound = torch.linalg.inv(_slopes(x.double(), world, TRUTH)[1]).diagonal().sqrt()
    assert float(bound[1]) < 0.05 and float(bound[2]) < 0.1
    off = fit.incumbent.parameters.log() - TRUTH
    assert bool((off.abs() < 3.5 * bound).all()), (off, bound)  # 99.9 % of three
    gained = fit.refinement.log_likelihood.max() - world.modes(TRUTH).log_likelihood(x, dt).sum()
    assert -0.01 < float(gained) < 8.1  # SETTLED; 99.9 %
    assert fit.incumbent.mass_identified and fit.refinement.scalars()["arrived"] == 1

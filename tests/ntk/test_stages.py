"""Stages of learning, found afterwards and found while they happen."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from observatory.ntk.stages import _fits, _Sums, find_stages
from observatory.ntk.stages_online import StageDetector
from observatory.solvable.deep_linear import kernel_entropy, mode_strengths

TARGETS = torch.tensor([5, 3, 2, 1.2, 0.7, 0.4], dtype=torch.float64)
LEARNING = ("plateau", "compression", "structure formation")
DT = 1e-3  # of one step


def entropy_of_learning(records: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the kernel's entropy of the solvable linear network, at times from 0.001 to 12."""
    times = torch.logspace(-3, np.log10(12), records, dtype=torch.float64)
    return (times / DT).numpy(), kernel_entropy(mode_strengths(TARGETS, times, start=1e-3)).numpy()


def chain(steps: np.ndarray, knots: list[float], heights: list[float]) -> np.ndarray:
    return np.interp(np.log1p(steps), np.log1p(knots), heights)


def test_linear_network_rests_compresses_and_forms_structure():
    steps, entropy = entropy_of_learning()
    noise = 0.003 * np.random.default_rng(0).standard_normal((120, 60))
    right = 0
    for y in entropy + noise:
        found = find_stages(steps, y)
        turning = found.turning_points
        covered = len(turning) == 1 and turning[0][0] * DT - 0.25 <= 0.85 <= turning[0][1] * DT + 0.25
        right += found.kinds == LEARNING and covered
        assert found.overall.kind == "compression"  # ends below where it began
    assert right >= 0.97 * len(noise)  # measured: 497 of 500; the rest see a plateau at the very end


def test_exact_chain_is_recovered():
    steps = np.unique(np.round(np.logspace(0, 4, 50)))
    at = [0, 14, 30, len(steps) - 1]
    y = chain(steps, steps[at].tolist(), [2.0, 2.0, 1.0, 1.6])
    found = find_stages(steps, y)
    np.testing.assert_allclose(found.knots, steps[at])
    np.testing.assert_allclose(found.values, [2, 2, 1, 1.6], atol=1e-7)
    assert found.kinds == LEARNING
    assert found.turning_points == [(steps[30], steps[30])]
    assert found.overall.change == pytest.approx(-0.4, abs=1e-7)


def brute_force(steps: np.ndarray, y: np.ndarray, count: int, minimum: int) -> float:
    """Smallest RSS of all continuous chains with `count` knots."""
    tau, best = np.log1p(steps), np.inf
    for inner in itertools.combinations(range(len(y)), count):
        knots = np.array([0, *inner, len(y) - 1])
        if (np.diff(knots) < minimum).any():
            continue
        hats = np.stack([np.interp(tau, tau[knots], row) for row in np.eye(len(knots))], 1)
        best = min(best, float(np.linalg.lstsq(hats, y, rcond=None)[1][0]))
    return best


@pytest.mark.parametrize("count", [1, 2])
def test_knots_are_the_best_of_all(count):
    rng = np.random.default_rng(count)
    steps = np.logspace(0, 3, 16)
    for _ in range(5):
        y = chain(steps, [1, 10, 100, 1000], rng.standard_normal(4)) + 0.05 * rng.standard_normal(16)
        knots = _fits(_Sums(np.log1p(steps), y, 3), count)[count]
        tau = np.log1p(steps)
        hats = np.stack([np.interp(tau, tau[knots], row) for row in np.eye(len(knots))], 1)
        rss = np.linalg.lstsq(hats, y, rcond=None)[1][0]
        assert rss == pytest.approx(brute_force(steps, y, count, 3), rel=1e-9)


def test_errors_of_the_slope_are_standard_errors():
    steps = np.logspace(0, 3, 40)
    rng = np.random.default_rng(0)
    fits = [find_stages(steps, 0.1 * rng.standard_normal(40), max_knots=0) for _ in range(400)]
    scores = np.array([fit.overall.slope / fit.overall.slope_error for fit in fits])
    assert np.std(scores) == pytest.approx(1, abs=5 * np.sqrt(0.5 / 400))
    assert all(len(fit.knots) == 2 for fit in fits)


def test_pure_noise_is_one_plateau():
    steps = np.logspace(0, 3, 40)
    rng = np.random.default_rng(1)
    kinds = Counter(find_stages(steps, rng.standard_normal(40)).kinds for _ in range(100))
    assert kinds[("plateau",)] >= 0.85 * 100  # two standard errors: 5 % at least are taken for a slope


def test_noise_that_is_known_widens_the_errors():
    steps, entropy = entropy_of_learning()
    smooth = find_stages(steps, entropy)
    doubtful = find_stages(steps, entropy, noise=10.0)
    assert smooth.kinds == LEARNING
    assert doubtful.kinds == ("plateau",) and doubtful.overall.kind == "plateau"


def test_records_that_are_not_finite_are_left_out():
    steps, entropy = entropy_of_learning()
    entropy[[3, 20, 59]] = np.nan
    assert find_stages(steps, entropy).kinds == LEARNING


def test_constant_series_rests():
    assert find_stages(np.arange(12), np.full(12, 3.0)).kinds == ("plateau",)


@pytest.mark.parametrize(
    ("steps", "values", "message"),
    [
        (np.arange(6), np.zeros(6), "need 7 finite records, got 6"),
        (np.arange(9)[::-1], np.zeros(9), "must increase"),
        (np.arange(9), np.zeros(8), "one value for each step"),
        (np.arange(9), np.full(9, np.nan), "got 0"),
    ],
)
def test_what_has_no_stages(steps, values, message):
    with pytest.raises(ValueError, match=message):
        find_stages(steps, values)


# Online


def run(detector: StageDetector, steps: np.ndarray, values: np.ndarray) -> list:
    return [c for c in map(detector.update, steps.tolist(), values.tolist()) if c is not None]


def test_detector_follows_the_linear_network():
    steps, entropy = entropy_of_learning()
    noise = 0.003 * np.random.default_rng(0).standard_normal((60, 60))
    runs = [run(StageDetector(noise=0.003), steps, y) for y in entropy + noise]
    right = [changes for changes in runs if tuple(c.after for c in changes) == LEARNING]
    assert len(right) >= 57  # measured: 298 of 300
    noticed = np.array([changes[2].step for changes in right]) * DT
    began = np.array([changes[2].since for changes in right]) * DT
    assert np.median(began) == pytest.approx(0.85, abs=0.25)
    assert np.median(noticed) < 2.0  # five records late


def test_detector_learns_the_noise():
    steps, entropy = entropy_of_learning()
    noise = 0.003 * np.random.default_rng(0).standard_normal((60, 60))
    seen = [tuple(c.after for c in run(StageDetector(), steps, y)) for y in entropy + noise]
    assert seen.count(LEARNING) >= 53  # measured: 283 of 300


def test_false_alarms_are_rare():
    values = np.random.default_rng(0).standard_normal(10_000)
    detector = StageDetector(noise=1.0, significance=6.0)
    changes = run(detector, np.arange(1.0, 10_001.0), values)
    assert len(changes) <= 5 and changes[0].after == "plateau"


def test_interrupted_detector_goes_on_as_if_it_had_not_been():
    steps, entropy = entropy_of_learning()
    values = entropy + 0.003 * np.random.default_rng(0).standard_normal(60)
    whole, first, second = StageDetector(), StageDetector(), StageDetector()
    expected = run(whole, steps, values)
    found = run(first, steps[:33], values[:33])
    second.load_state_dict(first.state_dict())
    assert found + run(second, steps[33:], values[33:]) == expected
    assert second.state_dict() == whole.state_dict()


def test_detector_passes_over_what_is_not_finite():
    detector = StageDetector()
    before = detector.state_dict()
    assert detector.update(3, float("nan")) is None and detector.state_dict() == before
    with pytest.raises(ValueError, match="at least 3 records"):
        StageDetector(minimum=2)

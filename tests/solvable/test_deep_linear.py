"""The two-layer linear network against itself: integrated step by step, and its kernel formed."""

from __future__ import annotations

import math

import pytest
import torch

from observatory.solvable.deep_linear import (
    balanced_start,
    half_times,
    kernel_eigenvalues,
    kernel_entropy,
    kernel_trace,
    mode_strengths,
)

TARGETS = torch.tensor([5, 3, 2, 1.2, 0.7, 0.4], dtype=torch.float64)


def target() -> torch.Tensor:
    u, v = torch.linalg.qr(torch.randn(2, 6, 6, dtype=torch.float64)).Q
    return u @ TARGETS.diag() @ v.mT


def dense_kernel(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Θ of f = W₂W₁x on X = I from the Jacobian of all outputs with respect to all weights."""
    jacobians = torch.func.jacrev(lambda one, two: two @ one, argnums=(0, 1))(first, second)
    rows = torch.cat([j.reshape(len(first) ** 2, -1) for j in jacobians], 1)
    return rows @ rows.T


def test_trace_and_entropy_at_four_times():
    s = mode_strengths(TARGETS, torch.tensor([0, 1, 2, 5]), start=1e-3)
    expected = torch.tensor([0.072, 54.0145, 111.2912, 140.0024], dtype=torch.float64)
    torch.testing.assert_close(kernel_trace(s), expected, rtol=0, atol=6e-5)  # the digits given
    expected = torch.tensor([3.583519, 2.664367, 3.171659, 3.383084], dtype=torch.float64)
    torch.testing.assert_close(kernel_entropy(s), expected, rtol=0, atol=6e-7)


def test_half_times_are_where_modes_are_half_learnt():
    times = half_times(TARGETS, start=1e-3)
    expected = torch.tensor([0.852, 1.334, 1.900, 2.954, 4.678, 7.486], dtype=torch.float64)
    torch.testing.assert_close(times, expected, rtol=0, atol=6e-4)
    s = mode_strengths(TARGETS, times, start=1e-3).diagonal()
    torch.testing.assert_close(s, TARGETS / 2, rtol=1e-12, atol=0)


def test_entropy_has_one_turning_point_while_the_first_mode_is_learnt():
    times = torch.linspace(0, 12, 12001)
    entropy = kernel_entropy(mode_strengths(TARGETS, times, start=1e-3))
    turning = (entropy.diff().sign().diff() != 0).nonzero().flatten()
    assert len(turning) == 1
    assert float(times[entropy.argmin()]) == pytest.approx(0.855, abs=1e-3)
    assert float(entropy.min()) == pytest.approx(2.6214, abs=1e-4)


def test_gradient_flow_follows_the_closed_form():
    first, second = balanced_start(target(), start=1e-3)
    goal, dt = target(), 1e-3
    first, second = balanced_start(goal, start=1e-3)

    def force(one: torch.Tensor, two: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        error = goal - two @ one
        return two.mT @ error, error @ one.mT

    traces, entropies = [], []
    for step in range(5001):
        if step in (0, 1000, 2000, 5000):
            eigenvalues = torch.linalg.eigvalsh(dense_kernel(first, second))
            q = eigenvalues.clamp_min(0) / eigenvalues.sum()
            traces.append(eigenvalues.sum())
            entropies.append(torch.special.entr(q).sum())
        a = force(first, second)  # Heun
        b = force(first + dt * a[0], second + dt * a[1])
        first, second = first + dt / 2 * (a[0] + b[0]), second + dt / 2 * (a[1] + b[1])
    s = mode_strengths(TARGETS, torch.tensor([0, 1, 2, 5]), start=1e-3)
    # errors of Heun's method at this step
    torch.testing.assert_close(torch.stack(traces), kernel_trace(s), rtol=2e-5, atol=1e-12)
    torch.testing.assert_close(torch.stack(entropies), kernel_entropy(s), rtol=5e-6, atol=0)


def test_kernel_eigenvalues_are_sums_of_strengths():
    first, second = balanced_start(target(), start=0.3)
    found = torch.linalg.eigvalsh(dense_kernel(first, second)).flip(-1)
    torch.testing.assert_close(found, kernel_eigenvalues(torch.full((6,), 0.3)), rtol=1e-6, atol=0)
    s = torch.rand(4, 6, dtype=torch.float64)
    eigenvalues = kernel_eigenvalues(s)
    assert eigenvalues.shape == (4, 36)
    torch.testing.assert_close(eigenvalues.sum(-1), kernel_trace(s))


def test_strengths_for_all_times_and_for_modes_that_are_not_in_the_target():
    sigma = torch.tensor([1e3, 1.0, 1e-12, 0.0], dtype=torch.float64)
    s = mode_strengths(sigma, torch.tensor([0.0, 3.0, 1e6]), start=0.1)
    assert s.isfinite().all()
    torch.testing.assert_close(s[0], torch.full((4,), 0.1, dtype=torch.float64))
    torch.testing.assert_close(s[2, :2], sigma[:2])
    decayed = 0.1 / (1 + 2 * 0.1 * 3.0)
    assert s[1, 3].item() == pytest.approx(decayed, rel=1e-14)
    assert s[1, 2].item() == pytest.approx(decayed, rel=1e-10)  # the limit is smooth
    ensemble = mode_strengths(sigma, torch.tensor([1.0, 1.0]), start=torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(ensemble[1], mode_strengths(sigma, torch.tensor(1.0), start=0.2))


def test_start_must_allow_learning():
    with pytest.raises(ValueError, match="must be positive"):
        mode_strengths(TARGETS, torch.zeros(1), start=0.0)
    with pytest.raises(ValueError, match="below half of every target"):
        half_times(TARGETS, start=0.3)
    assert math.isfinite(float(half_times(TARGETS, start=0.1)[-1]))

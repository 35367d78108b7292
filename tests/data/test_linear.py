"""The linear task has the curvatures that were asked for."""

from __future__ import annotations

import pytest
import torch

from observatory.data import LinearTask


def test_second_moment_and_residuals_are_exact() -> None:
    x, y = LinearTask(examples=200, inputs=5, smallest=0.1, largest=10, noise=0.5).dataset("train").tensors
    x, y = x.double(), y.double()
    expected = torch.diag(torch.tensor([10, 10**0.5, 1, 10**-0.5, 0.1], dtype=torch.float64))
    torch.testing.assert_close(x.mT @ x / 200, expected, rtol=0, atol=2e-6)  # float32 inputs up to about 10
    torch.testing.assert_close(x.mT @ y / 200, torch.zeros(5, 1).double(), rtol=0, atol=1e-6)
    assert float(y.square().mean()) == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"examples": 5, "inputs": 5}, "5 inputs need more than 5"),
        ({"smallest": 2, "largest": 1}, "got 2 and 1"),
    ],
)
def test_impossible_tasks_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearTask(**wrong)

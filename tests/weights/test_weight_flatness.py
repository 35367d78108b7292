"""Widths of loss profiles that have closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from observatory.weights import (
    Landscape,
    Lines,
    flatness,
    quadratic_flatness,
)


class Quadratic(nn.Module):
    """One example, whose loss is L₀ + b·θ + ½θᵀHθ."""

    def __init__(self, hessian: torch.Tensor, slope: torch.Tensor, level: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(slope), dtype=torch.float64))
        self.register_buffer("hessian", hessian)
        self.register_buffer("slope", slope)
        self.level = level

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.level + self.slope @ self.theta + self.theta @ self.hessian @ self.theta / 2
        return value.expand(len(x), 1)


def mean_output(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return output.mean()


DATA = (torch.zeros(1, 1), torch.zeros(1, 1))


def quadratic(curvature: list[float], slope: list[float], level: float = 0.3) -> Landscape:
    hessian, b = torch.diag(torch.tensor(curvature)).double(), torch.tensor(slope).double()
    return Landscape(Quadratic(hessian, b, level), DATA, loss=mean_output)


def test_flatness_of_a_quadratic_has_the_closed_form():
    curvature, slope = [4.0, 1.0, 1e-3, 2.0], [0.0, 0.0, 1e-3, -0.7]
    landscape = quadratic(curvature, slope)
    kappa, b = torch.tensor(curvature).double(), torch.tensor(slope).double()
    seen = flatness(
        Lines(landscape, torch.eye(4).double()), slopes=b, curvature=kappa, scale=torch.ones(4), s_max=1e6
    )
    expected = quadratic_flatness(torch.tensor(0.3), b, kappa)
    assert seen.width.tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    assert expected[0].item() == pytest.approx(2 * math.sqrt(2 * (math.e - 1) * 0.3 / 4))
    values = Lines(landscape, torch.eye(4).double()).values(torch.stack([seen.left, seen.right], 1))
    assert torch.allclose(values, torch.full_like(values, 0.3 * math.e), rtol=2e-3)  # F to 1e-3: L to 2e-3


@pytest.mark.parametrize("wrong", [0.0, 100.0, -1.0])
def test_flatness_does_not_depend_on_the_first_guess(wrong):
    landscape = quadratic([1.0, 0.01], [0.0, 0.05])
    exact = quadratic_flatness(torch.tensor(0.3), torch.tensor([0.0, 0.05]), torch.tensor([1.0, 0.01]))
    seen = flatness(
        Lines(landscape, torch.eye(2).double()), slopes=torch.tensor([0.0, 0.05]),
        curvature=torch.full((2,), wrong), scale=torch.full((2,), 1e-3),
    )  # fmt: skip
    assert seen.width.tolist() == pytest.approx(exact.tolist(), rel=1e-3)


class Quartic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 + self.s[0] ** 4 + torch.tanh(self.s[1]) ** 2).expand(len(x), 1)


def test_flatness_of_a_quartic_and_of_a_profile_that_never_rises_enough():
    landscape = Landscape(Quartic(), DATA, loss=mean_output)
    zero = torch.zeros(2).double()
    seen = flatness(
        Lines(landscape, torch.eye(2).double()), slopes=zero, curvature=zero, scale=zero + 0.1, s_max=50.0
    )
    assert seen.width[0].item() == pytest.approx(2 * (math.e - 1) ** 0.25, rel=1e-3)
    assert seen.width[1].item() == math.inf


@pytest.mark.parametrize("level", [0.0, -0.5])
def test_flatness_is_refused_where_the_loss_is_not_positive(level):
    one = torch.ones(1).double()
    with pytest.raises(ValueError, match="use the curvature instead"):
        flatness(
            Lines(quadratic([1.0], [0.0], level), one[:, None]), slopes=0 * one, curvature=one, scale=one
        )

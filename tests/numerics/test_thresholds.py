"""u' = r₁ below θ and r₂ above: u(T) = θ + r₂ (T - θ/r₁), so that du(T)/dθ = 1 - r₂/r₁."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from observatory.numerics.ode import integrate, uniform_grid
from observatory.numerics.thresholds import Heaviside
from observatory.physics.assimilation import Assimilation, Unknown

F64 = torch.float64


class TwoSlopes(nn.Module):
    components = ("u",)

    def __init__(self, heaviside: Heaviside, theta: float = 0.5, r1: float = 1.0, r2: float = 2.0) -> None:
        super().__init__()
        self.heaviside, self.r1, self.r2 = heaviside, r1, r2
        self.theta = nn.Parameter(torch.tensor(theta, dtype=F64))
        self.hard_thresholds = ("theta",) if heaviside.kind == "hard" else ()

    def rhs(self, t: Tensor, u: Tensor) -> Tensor:
        return self.r1 + (self.r2 - self.r1) * self.heaviside(u, self.theta)


def end(heaviside: Heaviside, step: float = 1e-3) -> tuple[float, float]:
    """u(1) and du(1)/dθ."""
    system, grid = TwoSlopes(heaviside), uniform_grid(torch.tensor([0.0, 1.0], dtype=F64), step)
    u = integrate(system, torch.zeros(1, dtype=F64), grid)[-1, 0]
    slopes = torch.autograd.grad(u, system.theta, allow_unused=True)[0] if u.requires_grad else None
    return u.item(), 0.0 if slopes is None else slopes.item()


def test_a_sigmoid_has_the_gradient_of_the_switching_time():
    """Exact once u is many widths above the threshold; the solution is shifted by less than the width."""
    u, slope = end(Heaviside("sigmoid", 0.01))
    assert slope == pytest.approx(1 - 2 / 1, abs=1e-6)
    assert u == pytest.approx(1.5, abs=0.01)


def test_a_comparison_has_no_gradient():
    u, slope = end(Heaviside("hard"))
    assert u == pytest.approx(1.5, abs=1e-3)  # the switch falls into one of the steps
    assert slope == 0.0


def test_a_straight_through_gradient_is_biased():
    u, slope = end(Heaviside("ste", 0.02))
    assert u == pytest.approx(1.5, abs=1e-3)
    assert 0.02 < abs(slope + 1) < 0.5
    _, finer = end(Heaviside("ste", 0.02), step=5e-4)
    assert abs(finer + 1) > 0.02  # and no smaller step helps


def test_a_hard_threshold_is_no_unknown():
    with pytest.raises(ValueError, match=r"theta.*jumps.*sigmoid"):
        Assimilation(TwoSlopes(Heaviside("hard")))
    with pytest.raises(ValueError, match="theta"):
        Assimilation(TwoSlopes(Heaviside("hard")), {"theta": Unknown()})
    Assimilation(TwoSlopes(Heaviside("sigmoid")), {"theta": Unknown()})


def test_bad_kinds_and_widths_are_refused():
    with pytest.raises(ValueError, match="hard, sigmoid or ste"):
        Heaviside("soft")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive"):
        Heaviside("sigmoid", 0.0)

"""Systems by what is known of their motion."""

from __future__ import annotations

import math

import pytest
import torch

from observatory.numerics.ode import integrate, uniform_grid
from observatory.physics.systems import Gravity, Lorenz96

F64 = torch.float64


def grid(end, h):
    return uniform_grid(torch.tensor([0.0, end], dtype=F64), h)


def test_lorenz96_advection_keeps_the_energy(generator):
    """d/dt ½ Σx² = -Σx² + F Σx; all xᵢ = F is at rest; a ring has no beginning; lanes have forcings."""
    system, x = Lorenz96(7, 3.0), torch.randn(2, 7, dtype=F64, generator=generator)
    forcing = torch.tensor([3.0, 8.0], dtype=F64)
    slope = torch.func.functional_call(_Slope(system), {"system.forcing": forcing}, (x,))
    power = forcing * x.sum(-1) - x.square().sum(-1)
    assert torch.allclose((x * slope).sum(-1), power, rtol=1e-12)
    assert not system.rhs(torch.tensor(0.0), torch.full((7,), 3.0, dtype=F64)).any()
    turned = system.rhs(torch.tensor(0.0), x.roll(2, -1))
    assert torch.allclose(turned, system.rhs(torch.tensor(0.0), x).roll(2, -1))


class _Slope(torch.nn.Module):
    def __init__(self, system):
        super().__init__()
        self.system = system

    def forward(self, y):
        return self.system.rhs(torch.tensor(0.0), y)


@torch.no_grad()
def test_lorenz96_loses_memory_at_its_known_rate(generator):
    """Largest exponent 1.68 of 40 at F = 8; of 32 systems over 40 time units it spreads by 2 %."""
    system = Lorenz96()
    y = 8 + torch.randn(32, 40, dtype=F64, generator=generator)
    y = integrate(system, y, grid(10.0, 0.05))[-1]
    near, growth = y + 1e-7 * torch.randn(y.shape, dtype=F64, generator=generator), []
    for _ in range(45):
        pair = integrate(system, torch.stack([y, near]), grid(1.0, 0.05))[-1]
        y, apart = pair[0], pair[1] - pair[0]
        size = apart.norm(dim=-1, keepdim=True)
        growth.append((size / 1e-7).log())
        near = y + 1e-7 * apart / size
    assert torch.stack(growth[5:]).mean().item() == pytest.approx(1.68, abs=0.15)


def kepler(eccentricity=0.0, masses=(3.0, 1.0)):
    """Two bodies a unit apart at their nearest, their centre of mass at rest."""
    total = sum(masses)
    speed = math.sqrt(total * (1 + eccentricity))
    share = torch.tensor([-masses[1] / total, masses[0] / total], dtype=F64)
    q = torch.stack([share, 0 * share], -1)
    v = torch.stack([0 * share, speed * share], -1)
    return Gravity(masses), torch.cat([q.flatten(), v.flatten()])


@pytest.mark.parametrize("method", ["verlet", "rk4"])
def test_two_bodies_return_after_a_period(method):
    """T = 2π √(a³/M): a circle and an ellipse of a = 2."""
    for eccentricity in (0.0, 0.5):
        system, y = kepler(eccentricity)
        period = 2 * math.pi * math.sqrt((1 / (1 - eccentricity)) ** 3 / 4)
        error = []
        for steps in (300, 600):
            end = integrate(system, y, grid(period, period / steps), method=method)[-1].detach()
            error.append((end - y).norm().item())
        assert error[0] < 0.1
        assert math.log2(error[0] / error[1]) == pytest.approx(2 if method == "verlet" else 4, abs=0.35)


@torch.no_grad()
def test_verlet_keeps_the_energy_and_all_methods_the_momentum():
    system, y = kepler(0.5)

    def energy(y):
        q, v = (part.unflatten(-1, (2, 2)) for part in y.chunk(2, -1))
        kinetic = (system.masses * v.square().sum(-1)).sum(-1) / 2
        return kinetic - system.masses.prod() / (q[..., 0, :] - q[..., 1, :]).norm(dim=-1)

    times = torch.linspace(0, 90, 151, dtype=F64)  # 10 orbits
    path = integrate(system, y, uniform_grid(times, 0.03), method="verlet")
    off = (energy(path) / energy(path[:1]) - 1).abs()
    assert off.max() < 0.01 and off[-50:].max() < 1.5 * off[:50].max()  # it oscillates, and does not drift
    momentum = (system.masses[:, None] * path[:, 4:].unflatten(-1, (2, 2))).sum(1)
    assert momentum.abs().max() < 1e-11

"""Steps that take a right-hand side apart, against what they are in closed form, with their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from fields import Growth
from torch import nn

from observatory.numerics.ode import crank_nicolson, integrate, laplacian, uniform_grid

F64 = torch.float64


def grid(end, h):
    return uniform_grid(torch.tensor([0.0, end], dtype=F64), h)


class Spring(nn.Module):
    """q'' = -ω² q."""

    def __init__(self, omega=1.3):
        super().__init__()
        self.omega = nn.Parameter(torch.tensor(omega, dtype=F64))

    def rhs(self, t, y):
        if isinstance(y, torch.Tensor):
            q, v = y.unbind(-1)
            return torch.stack([v, -self.omega.square() * q], -1)
        return {"q": y["v"], "v": -self.omega.square() * y["q"]}


@pytest.mark.parametrize("gradient", ["plain", "checkpointed"])
@pytest.mark.parametrize("named", [False, True])
def test_verlet_turns_a_spring_by_its_own_angle(named, gradient):
    """q_N = q₀ cos Nφ with cos φ = 1 - (ωh)²/2 from rest, and dφ/dω = ω h²/sin φ: exact, for any N."""
    spring, h, n, omega = Spring(), 0.2, 500, 1.3
    q = torch.tensor([0.7, -0.2], dtype=F64)
    y = {"q": q, "v": 0 * q} if named else torch.stack([q, 0 * q], -1)
    end = integrate(spring, y, grid(n * h, h), method="verlet", gradient=gradient, snapshots=20)
    found = end["q"][-1] if named else end[-1, :, 0]
    phi = math.acos(1 - (omega * h) ** 2 / 2)
    assert torch.allclose(found, q * math.cos(n * phi), rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(found[0], spring.omega)
    expected = -0.7 * n * math.sin(n * phi) * omega * h**2 / math.sin(phi)
    assert slope.item() == pytest.approx(expected, rel=1e-10)  # N² roundings of the angle


class Gated(nn.Module):
    """u' = -u/4, g' = (g∞ - g)/τ."""

    gates = ("g",)

    def __init__(self, tau=0.5, level=0.8):
        super().__init__()
        self.tau = nn.Parameter(torch.tensor(tau, dtype=F64))
        self.level = nn.Parameter(torch.tensor(level, dtype=F64))

    def rhs(self, t, y):
        return {"u": -y["u"] / 4, "g": (self.level - y["g"]) / self.tau}


@pytest.mark.parametrize("h", [0.1, 5.0])  # 10 τ: Euler's method would have exploded
@pytest.mark.parametrize("gradient", ["plain", "checkpointed"])
def test_rush_larsen_is_exact_for_gates(h, gradient):
    system, n = Gated(), 8
    y = {"u": torch.ones(3, dtype=F64), "g": torch.full((3,), 0.1, dtype=F64)}
    end = integrate(system, y, grid(n * h, h), method="rush_larsen", gradient=gradient)
    decay = math.exp(-n * h / 0.5)
    assert torch.allclose(end["g"][-1], torch.tensor(0.8 - 0.7 * decay, dtype=F64), rtol=1e-13)
    assert torch.allclose(end["u"][-1], torch.tensor((1 - h / 4) ** n, dtype=F64), rtol=1e-13, atol=1e-15)
    by_tau, by_level = torch.autograd.grad(end["g"][-1, 0], [system.tau, system.level])
    # roundings of e^(-h/τ) at τ² of the largest term, over all steps
    assert by_tau.item() == pytest.approx(-0.7 * n * h / 0.5**2 * decay, rel=1e-11, abs=1e-14)
    assert by_level.item() == pytest.approx(1 - decay, rel=1e-13)


def test_a_gate_without_decay_stands_still():
    class Frozen(Gated):
        def rhs(self, t, y):
            return {"u": y["u"], "g": self.level * y["u"]}

    system, y = Frozen(), {"u": torch.ones(1, dtype=F64), "g": torch.zeros(1, dtype=F64)}
    end = integrate(system, y, grid(0.3, 0.3), method="rush_larsen")["g"][-1]
    assert end.item() == pytest.approx(0.3 * 0.8, rel=1e-14)  # Euler's step: (eᶻ - 1)/z is 1
    (slope,) = torch.autograd.grad(end, system.level)
    assert slope.item() == pytest.approx(0.3, rel=1e-14)


class Spreading(nn.Module):
    """u' = D∇²u + r u (1 - s u) on a grid of unit spacing without flux through the borders."""

    def __init__(self, saturation=1.0):
        super().__init__()
        self.diffusion = nn.Parameter(torch.tensor(3.0, dtype=F64))
        self.rate, self.saturation = 0.4, saturation

    def rhs(self, t, u):
        return self.rate * u * (1 - self.saturation * u)

    def flow(self, h, u):
        return crank_nicolson(u, self.diffusion * h)


def mode(k, p, n=12, m=9):
    a, b = (torch.arange(size, dtype=F64) + 0.5 for size in (n, m))
    x, y = torch.cos(torch.pi * k * a / n), torch.cos(torch.pi * p * b / m)
    value = 2 * math.cos(math.pi * k / n) + 2 * math.cos(math.pi * p / m) - 4
    return x[:, None] * y, value


def test_strang_multiplies_every_mode_by_its_two_factors():
    """Two half steps of Crank-Nicolson and one of Heun; h D ρ = 12 is far beyond explicit methods."""
    system, h, n = Spreading(saturation=0.0), 0.5, 4
    for k, p in ((0, 0), (3, 2), (11, 8)):
        u, value = mode(k, p)
        z, a = h * 3.0 * value / 4, 0.4 * h
        factor = ((1 + z) / (1 - z)) ** 2 * (1 + a + a**2 / 2)
        end = integrate(system, u, grid(n * h, h), method="strang", gradient="checkpointed", snapshots=1)[-1]
        assert torch.allclose(end, factor**n * u, rtol=0, atol=1e-13)
        (slope,) = torch.autograd.grad((u * end).sum(), system.diffusion)
        per_step = 2 * (h * value / 4) * 2 / ((1 + z) * (1 - z))  # d ln factor / dD
        expected = n * per_step * factor**n * u.square().sum()
        assert slope.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-11)


def test_strang_is_of_second_order():
    u, _ = mode(1, 1)
    u, ends = 0.3 + 0.1 * u, []
    with torch.no_grad():
        for h in (0.2, 0.1, 0.05):
            ends.append(integrate(Spreading(), u, grid(2.0, h), method="strang")[-1])
    one, other = ((a - b).abs().max().item() for a, b in (ends[:2], ends[1:]))
    assert math.log2(one / other) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("boundary", ["no-flux", "periodic"])
@pytest.mark.parametrize("shape", [(7,), (6, 5)])
def test_crank_nicolson_solves_its_equation(boundary, shape, generator):
    """(1 - nL/2) u₊ = (1 + nL/2) u with L by differences of neighbours, lanes with numbers of their own, and
    nothing lost."""
    u = torch.rand(2, *shape, dtype=F64, generator=generator)
    number = torch.tensor([0.3, 20.0], dtype=F64)
    end = crank_nicolson(u, number, boundary=boundary, dims=len(shape))

    def laplacian(u):
        total = torch.zeros_like(u)
        for axis in range(1, u.ndim):
            last = u.shape[axis] - 1
            up, down = u.roll(-1, axis), u.roll(1, axis)
            if boundary == "no-flux":  # the neighbour beyond a border is the border itself
                up = torch.cat([up.narrow(axis, 0, last), u.narrow(axis, last, 1)], axis)
                down = torch.cat([u.narrow(axis, 0, 1), down.narrow(axis, 1, last)], axis)
            total = total + up + down - 2 * u
        return total

    half = number.reshape(2, *[1] * len(shape)) / 2
    assert torch.allclose(end - half * laplacian(end), u + half * laplacian(u), rtol=0, atol=1e-13)
    assert torch.allclose(end.flatten(1).sum(1), u.flatten(1).sum(1), rtol=1e-13)


def test_systems_without_parts_are_refused():
    y = torch.ones(3, dtype=F64)
    with pytest.raises(ValueError, match="positions and velocities"):
        integrate(Growth(), y, grid(1.0, 0.1), method="verlet")
    with pytest.raises(ValueError, match=r"gates=\(\)"):
        integrate(Growth(), {"u": y}, grid(1.0, 0.1), method="rush_larsen")
    with pytest.raises(ValueError, match=r"flow\(h, y\)"):
        integrate(Growth(), y, grid(1.0, 0.1), method="strang")
    with pytest.raises(ValueError, match="not by verlet"):
        integrate(Spring(), torch.ones(1, 2, dtype=F64), grid(1.0, 0.1), method="verlet",
                  gradient="interpolated")  # fmt: skip


def cosine_mode(n, k):
    """Of the DCT-II."""
    return torch.cos(torch.pi * k * (torch.arange(n, dtype=F64) + 0.5) / n)


def plane_wave(n, k):
    return torch.cos(2 * torch.pi * k * torch.arange(n, dtype=F64) / n + 0.3)


@pytest.mark.parametrize(
    ("boundary", "mode", "turns"), [("no-flux", cosine_mode, 1), ("periodic", plane_wave, 2)]
)
def test_laplacian_of_the_modes_of_its_grid(boundary, mode, turns):
    """Every mode is multiplied by Σ 2 cos(turns π k/n) - 2, in one dimension and in two."""
    n, m = 16, 12
    for k in range(n // turns):
        found = laplacian(mode(n, k).expand(3, n), boundary=boundary, dims=1)
        across = 2 * math.cos(turns * math.pi * k / n) - 2
        assert torch.allclose(found, across * mode(n, k).expand(3, n), rtol=0, atol=1e-13)
        for j in range(m // turns):
            u = mode(n, k)[:, None] * mode(m, j)
            rate = across + 2 * math.cos(turns * math.pi * j / m) - 2
            assert torch.allclose(laplacian(u, boundary=boundary), rate * u, rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, below jvp
@pytest.mark.parametrize("boundary", ["no-flux", "periodic"])
@pytest.mark.parametrize("compiled", [False, True])
def test_laplacian_is_its_own_transpose_below_every_transform(boundary, compiled, generator):
    """Of f = Σ u (Lu)²: vjp, Hessian-vector product and mapped jvp against those of the matrix of L."""
    u, w, *several = torch.randn(5, 4, 5, dtype=F64, generator=generator)
    basis = torch.eye(20, dtype=F64).reshape(20, 4, 5)
    matrix = laplacian(basis, boundary=boundary).reshape(20, 20)
    assert torch.equal(matrix, matrix.T) and not matrix.sum(0).any()  # nothing is lost

    def by_stencil(u):
        return u * laplacian(u, boundary=boundary).square()

    def by_matrix(u):
        return u * (matrix @ u.flatten()).reshape(u.shape).square()

    def found(f):
        def gradient(u):
            return torch.func.grad(lambda u: f(u).sum())(u)

        product = torch.func.jvp(gradient, (u,), (w,))[1]
        mapped = torch.func.vmap(lambda w: torch.func.jvp(f, (u,), (w,))[1])(torch.stack(several))
        return torch.func.vjp(f, u)[1](w)[0], product, mapped

    taken = torch.compile(found, backend="aot_eager", fullgraph=True) if compiled else found
    for mine, expected in zip(taken(by_stencil), found(by_matrix), strict=True):
        assert torch.allclose(mine, expected, rtol=0, atol=1e-12)
    x = u.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(by_stencil, (x,))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_field_without_its_dimensions_or_another_boundary_is_refused(compiled):
    one = torch.compile(laplacian, backend="aot_eager") if compiled else laplacian
    with pytest.raises(ValueError, match=r"shape \(5,\) has no 2 dimensions of space"):
        one(torch.zeros(5))
    with pytest.raises(ValueError, match="one of no-flux, periodic, got 'neumann'"):
        one(torch.zeros(5, 5), boundary="neumann")
    with pytest.raises(ValueError, match="one of no-flux, periodic, got 'neumann'"):
        crank_nicolson(torch.zeros(5, 5), torch.ones(()), boundary="neumann")

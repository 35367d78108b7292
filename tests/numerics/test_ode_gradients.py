"""Every kind of gradient against closed forms, differences, and one another."""

from __future__ import annotations

import math
import shutil
import weakref

import pytest
import torch
from fields import FitzHughNagumo, Forced, Growth, Heat
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from observatory.numerics.ode import (
    TABLEAUX,
    VectorField,
    check_gradients,
    compiled,
    integrate,
    uniform_grid,
)

F64 = torch.float64


def gradients(system, y, grid, **options):
    """dL/d(state, θ) of a loss that weights every wanted time and element differently."""
    y = tree_map(lambda x: x.clone().requires_grad_(), y)
    leaves = tree_leaves(integrate(system, y, grid, **options))
    weights = [torch.cos(torch.arange(x.numel(), dtype=F64)).to(x).reshape(x.shape) for x in leaves]
    loss = sum((w * x.square()).sum() for w, x in zip(weights, leaves, strict=True))
    module = system.system if isinstance(system, VectorField) else system
    return torch.autograd.grad(loss, [*tree_leaves(y), *module.parameters()])


def deviation(found, expected):
    """Largest over both lists, relative to the size of each tensor."""
    pairs = zip(found, expected, strict=True)
    return max(float((f - e).abs().max() / e.abs().max()) for f, e in pairs)


@pytest.mark.parametrize("gradient", ["plain", "checkpointed"])
@pytest.mark.parametrize("method", TABLEAUX)
def test_discrete_gradient_of_exponential_growth(method, gradient, device):
    a, h, n, y0 = -0.7, 0.25, 16, 1.3
    system, times = Growth(a).to(device), torch.tensor([0.0, n * h], dtype=F64, device=device)
    y = torch.tensor(y0, dtype=F64, device=device, requires_grad=True)
    end = integrate(system, y, uniform_grid(times, h), method=method, gradient=gradient, snapshots=3)[-1]
    by_a, by_y = torch.autograd.grad(end, [system.a, y])
    z, stability = a * h, TABLEAUX[method].stability
    r = sum(c * z**k for k, c in enumerate(stability))
    slope = sum(k * c * z ** (k - 1) for k, c in enumerate(stability) if k)
    # 16 steps of some ten roundings each
    assert end.item() == pytest.approx(r**n * y0, rel=1e-14)
    assert by_y.item() == pytest.approx(r**n, rel=1e-14)
    assert by_a.item() == pytest.approx(n * r ** (n - 1) * slope * h * y0, rel=1e-14)


def test_discrete_gradient_is_not_that_of_the_equation():
    """R(z) of RK4 is e^z to fourth order only: -2.12·10⁻⁵ at a = -0.7, h = 0.25, N = 16."""
    system, y = Growth(), torch.tensor(1.3, dtype=F64)
    end = integrate(system, y, uniform_grid(torch.tensor([0.0, 4.0], dtype=F64), 0.25))[-1]
    (slope,) = torch.autograd.grad(end, system.a)
    assert slope.item() / (4 * 1.3 * math.exp(-2.8)) - 1 == pytest.approx(-2.12e-5, abs=5e-8)


@pytest.mark.parametrize("end, tolerance", [(1.0, 2e-6), (5.0, 1e-8), (10.0, 1e-8), (50.0, 1e-8)])
def test_discrete_gradient_of_the_heat_equation(end, tolerance, generator):
    scipy_fft = pytest.importorskip("scipy.fft")
    y = torch.rand(64, generator=generator, dtype=F64)
    amplitudes = torch.from_numpy(scipy_fft.dct(y.numpy(), norm="ortho"))
    eigenvalues = 2 * torch.cos(torch.pi * torch.arange(64, dtype=F64) / 64) - 2
    exact = (2 * amplitudes**2 * eigenvalues * end * torch.exp(2 * eigenvalues * end)).sum()
    system, grid = Heat(), uniform_grid(torch.tensor([0.0, end], dtype=F64), 0.1)
    loss = integrate(system, y, grid, gradient="checkpointed", snapshots=10)[-1].square().sum()
    (slope,) = torch.autograd.grad(loss, system.diffusion)
    assert slope.item() == pytest.approx(exact.item(), rel=tolerance)


@pytest.mark.parametrize("snapshots", [None, 0, 1, 7])
def test_checkpoints_leave_the_gradient_of_an_excitable_medium(snapshots):
    system, y = FitzHughNagumo(), FitzHughNagumo.beginning(2, 32, 32)
    grid = uniform_grid(torch.tensor([0.0, 0.7, 2.0, 4.0], dtype=F64), 0.2)
    plain = gradients(system, y, grid)
    assert deviation(gradients(system, y, grid, gradient="checkpointed", snapshots=snapshots), plain) < 1e-12


def test_adjoint_equation_converges_to_the_discrete_gradient_of_an_excitable_medium():
    """Both have the error h⁴ of RK4, so that their difference falls 16-fold when h is halved."""
    system, y = FitzHughNagumo(), FitzHughNagumo.beginning(32, 32)
    times, apart = torch.tensor([0.0, 1.0, 2.0], dtype=F64), []
    for h in (0.1, 0.05):
        grid = uniform_grid(times, h)
        plain = gradients(system, y, grid)
        apart.append(deviation(gradients(system, y, grid, gradient="interpolated"), plain))
    assert apart[1] < 1e-4
    assert 12 < apart[0] / apart[1] < 20


def test_gradients_of_an_excitable_medium_hold(generator):
    system, y = FitzHughNagumo(), FitzHughNagumo.beginning(32, 32)
    grid = uniform_grid(torch.linspace(0, 2, 3, dtype=F64), 0.1)
    check = check_gradients(system, y, grid, lambda s: s["u"].square().sum(), generator=generator)
    assert check.discrete_error < 1e-6  # ε^(2/3) of central differences, times the curvature
    assert check.continuous_error < 1e-4  # h⁴ = 10⁻⁴ of the fastest mode


def test_check_of_gradients_sees_what_a_jump_loses(generator):
    class Switched(Growth):
        def rhs(self, t, y):
            return torch.where(y < self.a, 1.0, 2.0)

    grid = uniform_grid(torch.tensor([0.0, 1.0], dtype=F64), 1e-2)
    start = torch.linspace(0, 1e-2, 400, dtype=F64)  # the instants of the jumps average out
    check = check_gradients(Switched(0.5), start, grid, lambda y: y[-1].mean(), generator=generator)
    assert check.discrete_error > 0.1


@pytest.mark.parametrize("h", [0.1, 0.05])
def test_against_torchdiffeq(h):
    """Its rk4 is the 3/8 rule: the same for linear equations, and to order h⁴ for others."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    times, y = torch.linspace(0, 2, 5, dtype=F64), torch.linspace(0.3, 1.3, 7, dtype=F64)
    system = Growth()
    theirs = torchdiffeq.odeint(system.rhs, y, times, method="rk4", options={"step_size": h})
    (slope,) = torch.autograd.grad(theirs.sum(), system.a)
    ours = integrate(system, y, uniform_grid(times, h), gradient="checkpointed")
    assert torch.allclose(ours, theirs, rtol=1e-13)
    assert torch.autograd.grad(ours.sum(), system.a)[0].item() == pytest.approx(slope.item(), rel=1e-12)

    medium, fields = FitzHughNagumo(), FitzHughNagumo.beginning(16, 16)

    def stacked(t, s):
        slopes = medium.rhs(t, {"u": s[0], "v": s[1]})
        return torch.stack([slopes["u"], slopes["v"]])

    start = torch.stack([fields["u"], fields["v"]])
    theirs = torchdiffeq.odeint(stacked, start, times, method="rk4", options={"step_size": h})
    expected = torch.autograd.grad(theirs.square().sum(), list(medium.parameters()))
    ours = integrate(medium, fields, uniform_grid(times, h), gradient="checkpointed")
    loss = ours["u"].square().sum() + ours["v"].square().sum()
    found = torch.autograd.grad(loss, list(medium.parameters()))
    assert deviation(found, expected) < 2 * h**4


class PeakMemory(TorchDispatchMode):
    """Bytes of tensor storage alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage):
        key = storage._cdata
        if key in self.alive:
            return
        self.alive[key], self.now = storage.nbytes(), self.now + storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key):
        self.now -= self.alive.pop(key)


@pytest.mark.parametrize(
    "kind, exponent, longest",
    [
        ("plain", 1.0, 800),
        ("checkpointed", 0.5, 800),
        pytest.param("checkpointed", 0.5, 6400, marks=pytest.mark.slow),
    ],
)
def test_memory_grows_as_the_root_of_the_number_of_steps(kind, exponent, longest):
    """With √n snapshots; automatic differentiation remembers all of them."""
    peaks, system, y = {}, Growth(-0.1), torch.ones(5000, dtype=F64)
    for n in (100, longest):
        grid = uniform_grid(torch.tensor([0.0, 1.0], dtype=F64), 1 / n)
        with PeakMemory() as memory:
            gradients(system, y, grid, method="euler", gradient=kind, snapshots=math.isqrt(n))
        peaks[n] = memory.peak
    slope = math.log(peaks[longest] / peaks[100]) / math.log(longest / 100)
    assert slope == pytest.approx(exponent, abs=0.1)


@pytest.mark.parametrize("n, snapshots", [(10, 3), (35, 3), (36, 3), (200, 14), (64, 1)])
def test_no_step_is_repeated_more_often_than_binomial_checkpointing_allows(n, snapshots):
    """s snapshots beside the first state and r repetitions reverse up to (s+1+r choose r) steps."""

    class Counted(Growth):
        calls = 0

        def rhs(self, t, y):
            self.calls += 1
            return super().rhs(t, y)

    system = Counted()
    grid = uniform_grid(torch.tensor([0.0, 1.0], dtype=F64), 1 / n)
    gradients(system, torch.ones(1, dtype=F64), grid, method="euler", gradient="checkpointed",
              snapshots=snapshots)  # fmt: skip
    repetitions = next(r for r in range(n) if math.comb(snapshots + 1 + r, r) >= n)
    # forward once, transposed once, and in between every step at most so many times
    assert system.calls <= n * (2 + repetitions)


def test_lanes_with_their_own_parameters_and_times_are_what_each_is_alone(device):
    times = torch.stack([torch.linspace(0, 1, 4), torch.linspace(0.5, 3, 4), torch.tensor([0, 1, 1, 2.0])], 1)
    times, k = times.to(F64).to(device), torch.tensor([0.5, 1.5, 3.0], dtype=F64, device=device)
    system, y = Forced().to(device), torch.full((3,), 0.2, dtype=F64, device=device)
    together = integrate(system, y, uniform_grid(times, 0.05), {"k": k})
    for lane in range(3):
        steps = uniform_grid(times, 0.05)
        steps = type(steps)(steps.starts[:, lane], steps.sizes[:, lane], steps.saves)
        alone = integrate(system, y[lane], steps, {"k": k[lane]})
        assert torch.allclose(together[:, lane], alone, rtol=1e-13, atol=0)
    assert torch.equal(together[1, 2], together[2, 2])  # between equal times a lane stands still


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_steps_are_the_steps_and_are_compiled_once(backend, monkeypatch):
    """Whatever the number of steps and of lanes; one lane has code of its own. States that eager code has
    made lie otherwise in memory than the first one, of which inductor takes care: two pieces more."""
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("the compiled code is C++, for which no compiler is found")
    counter = CompileCounterWithBackend(backend)
    monkeypatch.setattr(compiled, "BACKEND", counter)
    field = VectorField(FitzHughNagumo())
    layouts = {"inductor": 0, "aot_eager": 2}[backend]
    for lanes, end, compilations in ((2, 1.0, 2), (2, 1.7, 2), (5, 1.0, 2), (3, 2.0, 2), (1, 1.0, 4)):
        y = FitzHughNagumo.beginning(lanes, 12, 10)
        grid = uniform_grid(torch.tensor([0.0, end / 2, end], dtype=F64), 0.1)
        eager = gradients(field, y, grid, gradient="checkpointed")
        found = gradients(field, y, grid, gradient="checkpointed", compiled=True)
        assert deviation(found, eager) < 1e-12
        assert counter.frame_count == layouts + compilations  # the step and its transposed

"""Grids of steps, adaptive steps, and what is refused."""

from __future__ import annotations

import math
import pickle
import warnings

import pytest
import torch
from fields import Forced, Growth, Heat
from torch import nn

from observatory.numerics.ode import TABLEAUX, VectorField, adaptive_grid, integrate, uniform_grid
from observatory.numerics.ode.continuous import contraction_rate

F64 = torch.float64


@pytest.mark.parametrize("method", TABLEAUX)
def test_each_method_has_its_order(method):
    """Also with a right-hand side that depends on time: halving h divides the error by 2^order."""
    system, times, errors = Forced(), torch.tensor([0.0, 2.0], dtype=F64), []
    for h in (0.05, 0.025):
        y = integrate(system, torch.tensor(0.2, dtype=F64), uniform_grid(times, h), method=method)
        errors.append((y[-1] - system.solution(times[-1], 0.2)).abs().item())
    # the next term of the error is some h times the leading one
    assert math.log2(errors[0] / errors[1]) == pytest.approx(TABLEAUX[method].order, abs=0.25)


def test_stability_polynomials_are_those_of_the_exponential():
    assert TABLEAUX["rk4"].stability == pytest.approx((1, 1, 1 / 2, 1 / 6, 1 / 24))
    for tableau in TABLEAUX.values():
        exponential = [1 / math.factorial(k) for k in range(tableau.order + 1)]
        assert tableau.stability[: tableau.order + 1] == pytest.approx(exponential, abs=1e-14)


def test_uniform_steps_meet_the_wanted_times():
    times = torch.tensor([0.0, 0.25, 1.0], dtype=F64)
    grid = uniform_grid(times, 0.1)
    assert grid.saves == (0, 3, 11)  # 3 steps of 1/12 and 8 of 3/32
    assert torch.allclose(grid.sizes, torch.tensor([0.25 / 3] * 3 + [0.75 / 8] * 8, dtype=F64))
    ends = grid.starts + grid.sizes
    assert torch.allclose(ends[[2, 10]], times[1:]) and torch.allclose(ends[:-1], grid.starts[1:])
    assert len(uniform_grid(torch.linspace(0, 20, 101, dtype=F64), 0.2)) == 100  # and not 200 by rounding


@pytest.mark.parametrize("rtol", [1e-4, 1e-7, 1e-10])
@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_adaptive_steps_keep_their_tolerance(method, rtol):
    system, times = Forced(), torch.tensor([0.0, 0.3, 5.0, 9.0], dtype=F64)
    y = torch.tensor(3.0, dtype=F64)
    grid = adaptive_grid(system, y, times, method=method, rtol=rtol, atol=rtol)
    found = integrate(system, y, grid, method=method)
    # local errors of at most rtol per step add up while the equation contracts them: ten of them at most
    assert (found - system.solution(times, 3.0)).abs().max() < 10 * rtol
    assert torch.equal((grid.starts + grid.sizes)[[s - 1 for s in grid.saves[1:]]], times[1:])


def test_adaptive_steps_are_counted_by_the_fifth_root_of_the_tolerance():
    system, y, times = Forced(), torch.tensor(3.0, dtype=F64), torch.tensor([0.0, 9.0], dtype=F64)
    few, many = (len(adaptive_grid(system, y, times, rtol=tol, atol=tol)) for tol in (1e-6, 1e-11))
    assert many / few == pytest.approx(10, rel=0.15)  # 10^(5/5), but for the first and the last step


def test_lanes_choose_their_own_steps():
    """A fast lane beside a slow one costs the slow one nothing but waiting."""
    system, k = Forced(), torch.tensor([0.5, 20.0], dtype=F64)
    times, y = torch.tensor([0.0, 1.0, 4.0], dtype=F64), torch.full((2,), 3.0, dtype=F64)
    grid = adaptive_grid(system, y, times, {"k": k}, lanes=1)
    steps = grid.sizes.gt(0).sum(0)
    for lane in range(2):
        alone = adaptive_grid(system, y[lane], times, {"k": k[lane]})
        assert abs(int(steps[lane]) - len(alone)) <= 2  # rounding may move an accepted step
    assert steps[1] > 3 * steps[0]
    found = integrate(system, y, grid, {"k": k}, method="dopri5")
    for lane, rate in enumerate(k.tolist()):
        exact = Forced(rate).solution(times, 3.0)
        assert torch.allclose(found[:, lane], exact, rtol=0, atol=1e-5)


def test_gradient_through_adaptive_steps_is_exact_for_their_sizes():
    system, y = Forced(), torch.tensor(3.0, dtype=F64)
    grid = adaptive_grid(system, y, torch.tensor([0.0, 2.0], dtype=F64), rtol=1e-5)

    def end(k):
        return integrate(system, y, grid, {"k": k}, method="dopri5", gradient="checkpointed")[-1]

    k = torch.tensor(1.5, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(end(k), k)
    with torch.no_grad():
        difference = (end(k + 1e-5) - end(k - 1e-5)) / 2e-5
    assert slope.item() == pytest.approx(difference.item(), rel=1e-8)


def test_fastest_rate_of_the_heat_equation():
    """2 - 2 cos(63π/64) for unit diffusivity, from below by power iteration."""
    system = Heat(3.0)
    field = VectorField(system)
    rate = contraction_rate(field, torch.tensor(0.0), torch.zeros(64, dtype=F64), field.theta)
    assert rate == pytest.approx(3 * 3.9976, rel=0.02)


@pytest.mark.parametrize("end, unsound", [(1.0, False), (20.0, True)])
def test_backsolve_warns_where_it_loses_the_gradient(end, unsound, generator):
    """Rate 4 D: e⁴ is harmless, e⁸⁰ makes the gradient wrong by orders of magnitude."""
    system, y = Heat(), torch.rand(64, generator=generator, dtype=F64)
    grid = uniform_grid(torch.tensor([0.0, end], dtype=F64), 0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = integrate(system, y, grid, gradient="backsolve")[-1].square().sum()
    assert [("backsolve" in str(w.message)) for w in caught] == [True] * unsound
    (found,) = torch.autograd.grad(loss, system.diffusion)
    exact = integrate(system, y, grid)[-1].square().sum()
    (expected,) = torch.autograd.grad(exact, system.diffusion)
    error = abs(float(found / expected) - 1)
    assert error > 10 if unsound else error < 1e-4
    # more frequent wanted times make backsolve sound: the way back starts anew from each
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dense = uniform_grid(torch.linspace(0, end, int(end) + 1, dtype=F64), 0.1)
        integrate(system, y, dense, gradient="backsolve")


def test_states_may_be_nested():
    class Rotation(nn.Module):
        def __init__(self):
            super().__init__()
            self.omega = nn.Parameter(torch.tensor(2.0, dtype=F64))

        def rhs(self, t, y):
            return {"x": self.omega * y["p"][0], "p": (-self.omega * y["x"],)}

    y = {"x": torch.ones(3, dtype=F64), "p": (torch.zeros(3, dtype=F64),)}
    found = integrate(Rotation(), y, uniform_grid(torch.tensor([0.0, 0.7], dtype=F64), 0.01))
    assert found["x"].shape == (2, 3)
    assert torch.allclose(found["x"][-1], torch.cos(torch.tensor(1.4, dtype=F64)), atol=1e-9)
    assert torch.allclose(found["p"][0][-1], -torch.sin(torch.tensor(1.4, dtype=F64)), atol=1e-9)


def test_a_vector_field_is_pickled_without_its_compiled_code():
    field = VectorField(Growth())
    field._kept["step", TABLEAUX["rk4"]] = lambda: None
    assert pickle.loads(pickle.dumps(field))._kept == {}


@pytest.mark.parametrize(
    "times, step, words",
    [
        ([0.0, 1.0, 0.5], 0.1, "time 2 does not come after time 1"),
        ([0.0, 1.0, 1.0], 0.1, "must increase"),
        ([0.0, math.nan], 0.1, "must increase"),
        ([0.0], 0.1, "at least two"),
        ([0.0, 1.0], 0.0, "step must be positive"),
    ],
)
def test_bad_times_are_refused(times, step, words):
    with pytest.raises(ValueError, match=words):
        uniform_grid(torch.tensor(times, dtype=F64), step)


def test_what_cannot_be_integrated_is_refused():
    grid, y = uniform_grid(torch.tensor([0.0, 1.0], dtype=F64), 0.1), torch.ones(2, dtype=F64)
    with pytest.raises(
        ValueError, match="euler, heun, ssprk3, rk4, dopri5, tsit5, verlet, rush_larsen, strang"
    ):
        integrate(Growth(), y, grid, method="midpoint")
    with pytest.raises(ValueError, match="plain, checkpointed"):
        integrate(Growth(), y, grid, gradient="magic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float16"):
        integrate(Growth(), y.half(), grid)
    with pytest.raises(TypeError, match="rhs"):
        integrate(nn.Linear(2, 2), y, grid)

    class Blows(Growth):
        def rhs(self, t, y):
            return y**2  # 1/(1-t)

    with pytest.raises(ValueError, match="stiff or singular"):
        adaptive_grid(Blows(), y, torch.tensor([0.0, 2.0], dtype=F64))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_steps_below_vmap_are_those_of_the_whole_batch(axis):
    """Mapped over lanes, along any axis: the same steps, and the same refusal of times that go backwards."""
    times = torch.rand(7, 3, 5, dtype=F64, generator=torch.Generator().manual_seed(0)).cumsum(0)
    whole, saves = uniform_grid(times, 0.2), []

    def mapped(lanes):
        grid = uniform_grid(lanes, 0.2)
        saves.append(grid.saves)
        return grid.starts, grid.sizes

    over = torch.func.vmap(mapped, in_dims=axis, out_dims=2)
    starts, sizes = over(times.movedim(2, axis))
    assert saves == [whole.saves] and max(torch.tensor(whole.saves).diff()) > 1
    assert torch.equal(starts, whole.starts) and torch.equal(sizes, whole.sizes)
    with pytest.raises(ValueError, match="time 6 does not come after time 5"):
        backwards = times.clone()
        backwards[6, 2, 4] = 0.0
        over(backwards.movedim(2, axis))

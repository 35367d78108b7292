"""Twin experiments: parameters and initial states recovered from noisy trajectories."""

from __future__ import annotations

import math

import pytest
import torch

from observatory.data import SimulatedTrajectories
from observatory.numerics.ode import integrate, uniform_grid
from observatory.physics.assimilation import Assimilation, LevenbergMarquardt, Unknown, estimates
from observatory.physics.systems import DampedOscillator, Gravity, Lorenz63, LotkaVolterra

F64 = torch.float64


def batch_of(data: SimulatedTrajectories):
    data.setup("fit")
    return next(iter(data.val_dataloader()))


def oscillators(observed=("x", "v"), noise=0.01, trajectories=3, seed=0, **options):
    return SimulatedTrajectories(
        DampedOscillator(2.0, 0.3), trajectories, 80, 8.0, [(0.5, 1.5), (-1.0, 1.0)],
        noise=noise, observed=observed, seed=seed, **options,
    )  # fmt: skip


@pytest.mark.parametrize("systems, spread", [(20, 0.25), pytest.param(100, 0.1, marks=pytest.mark.slow)])
def test_lotka_volterra_in_many_systems(systems, spread):
    """Six parameters each from 200 samples with 1 % noise, two of them 0: median errors below 10⁻³, χ² right,
    and errors as large as the standard errors say."""
    ranges = {name: (0.1, 1.0) for name in ("alpha", "beta", "gamma", "delta")}
    data = SimulatedTrajectories(
        LotkaVolterra(), systems, 200, 40.0, [(0.1, 1.0)] * 2, parameters=ranges, noise=0.01
    )
    batch = batch_of(data)
    truth = data.truth | {name: torch.zeros(systems, dtype=F64) for name in ("c1", "c2")}
    model = Assimilation(
        LotkaVolterra(), {name: Unknown(individual=True) for name in truth}, systems=systems,
        segments=20,
        step=0.11, relative_noise=0.01, warm_start=True,
    )  # fmt: skip
    model.begin(batch)
    first = model.estimates()
    assert all((first[name] - truth[name]).abs().median() < 1.5e-3 for name in truth)
    method = LevenbergMarquardt(model, matching=(1.0, 100.0, 1e4), iterations=3)
    for _ in range(9):
        method.advance(batch)
    found = estimates(model, batch)
    errors = {name: found.values[name] - truth[name] for name in truth}
    assert max(float(e.abs().median()) for e in errors.values()) < 1e-3
    assert (found.chi2 < 1.3).double().mean() >= 0.9
    pulls = torch.stack([errors[name] / found.standard_errors[name] for name in truth])
    # six pulls in each system, which depend on one another: of 100 systems the standard deviation spreads by
    # about 5 %, of 20 by 11 %
    assert float(pulls.std()) == pytest.approx(1.0, abs=spread)


def lorenz(segments, systems=16):
    """Ten Lyapunov times of 16 systems, seen each 0.05; the fit starts 50 % off in every parameter."""
    data = SimulatedTrajectories(
        Lorenz63(), systems, 222, 11.05, [(-5.0, 5.0), (-5.0, 5.0), (20.0, 30.0)], transient=10.0, noise=0.01
    )
    system, rate = Lorenz63(15.0, 14.0, 4.0), Unknown(lower=0.0, individual=True)
    model = Assimilation(
        system, {"sigma": rate, "rho": rate, "beta": rate}, systems=systems, segments=segments, step=0.01,
        relative_noise=0.01,
    )  # fmt: skip
    return model, batch_of(data)


def worst_of(model):
    truth = {"sigma": 10.0, "rho": 28.0, "beta": 8 / 3}
    return max((model.estimates()[name] / value - 1).abs().max().item() for name, value in truth.items())


@pytest.mark.parametrize(
    "segments, iterations, systems",
    [(45, 4, 4), *(pytest.param(*case, 16, marks=pytest.mark.slow) for case in ((45, 5), (21, 10)))],
)
def test_chaos_by_multiple_shooting(segments, iterations, systems):
    """Segments of a quarter or half of a Lyapunov time: all of 16 systems within 0.5 %."""
    model, batch = lorenz(segments, systems)
    stages = (1e-2, 1.0, 100.0, 1e4)
    method = LevenbergMarquardt(model, matching=stages, iterations=iterations)
    for _ in range(iterations * len(stages)):
        scalars = method.advance(batch)
    assert worst_of(model) < 5e-3
    assert scalars["gap"].item() < 0.02  # in units of the noise: one trajectory in the end
    # 666 numbers in each system, 138 unknowns and 132 ties: χ²/N = 0.99 with a spread of √(2/666)
    assert scalars["misfit"].item() == pytest.approx(0.99, abs=4.5 * math.sqrt(2 / (666 * systems)))


@pytest.mark.slow
def test_chaos_in_one_shot_is_a_failure():
    """Recorded: over ten Lyapunov times the misfit is too rugged for the same optimizer."""
    model, batch = lorenz(1)
    method = LevenbergMarquardt(model, iterations=60)
    for _ in range(30):
        scalars = method.advance(batch)
    assert worst_of(model) > 0.05 and scalars["misfit"].item() > 100


def test_hidden_velocity_and_shared_parameters():
    """Only x is seen; v is found, and what all trajectories share, within 5 standard errors."""
    data = oscillators(observed=("x",))
    batch = batch_of(data)
    model = Assimilation(
        DampedOscillator(1.7, 0.1), {"omega": Unknown(lower=0.0), "gamma": Unknown(lower=0.0)}, systems=3,
        segments=8, step=0.11, observed=("x",), relative_noise=0.01,
    )  # fmt: skip
    method = LevenbergMarquardt(model, matching=(1e-2, 1.0, 1e4), iterations=5)
    for _ in range(15):
        method.advance(batch)
    found = estimates(model, batch)
    for name, value in {"omega": 2.0, "gamma": 0.3}.items():
        assert abs(float(found.values[name]) - value) < 5 * float(found.standard_errors[name])
        assert float(found.standard_errors[name]) < 0.01
    hidden = model.initial_states()[:, 0, 1]
    assert (hidden - data.states[:, 0, 1]).abs().max() < 0.03
    assert float(found.chi2) == pytest.approx(1.0, abs=5 * math.sqrt(2 / 232))


def test_the_jacobian_is_the_derivative_of_the_residuals():
    """By segments and directions, against differences of every coordinate."""
    from observatory.physics.assimilation.sensitivities import Problem

    batch = batch_of(oscillators(trajectories=2))
    omega, gamma = Unknown(lower=0.0), Unknown(individual=True)
    model = Assimilation(
        DampedOscillator(1.8, 0.2), {"omega": omega, "gamma": gamma}, systems=2, segments=4, step=0.1,
        matching=3.0,
    )  # fmt: skip
    problem = Problem(model, *model.begin(batch))
    x = problem.pack(model.coordinates)
    x = x + 0.1 * torch.cos(torch.arange(x.numel(), dtype=F64)).reshape(x.shape)
    with torch.no_grad():
        _, jacobian = problem.linearise(x)
        for p in range(x.shape[1]):
            e = torch.zeros_like(x)
            e[:, p] = 1e-5
            difference = (problem.residuals(x + e) - problem.residuals(x - e)) / 2e-5
            assert torch.allclose(
                jacobian[..., p], difference, rtol=0, atol=1e-8 * float(jacobian.abs().max())
            )


def test_gaps_in_the_data_carry_no_weight():
    """What was not observed may be anything: same residuals, and none where nothing was seen."""
    (which, times), values = batch_of(oscillators(trajectories=2))
    values = values.clone()
    values[0, 10:30, 0] = math.nan
    model = Assimilation(DampedOscillator(), systems=2, step=0.1)
    query, seen = model.begin(((which, times), values))
    data = model.residuals(query, seen).data
    assert (data[0, 10:30, 0] == 0).all() and data.isfinite().all()
    loss = model.training_loss(((which, times), values))
    assert loss.item() == pytest.approx(data.square().sum().item() / (2 * 300), rel=1e-12)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "unknown, theta",
    [
        (Unknown(), lambda z: 2.0 + 2.0 * z),
        (Unknown(scale=0.5), lambda z: 2.0 + 0.5 * z),
        (Unknown(lower=1.0), lambda z: 1.0 + math.exp(z)),
        (Unknown(upper=3.0), lambda z: 3.0 - math.exp(z)),
        (Unknown(lower=1.0, upper=5.0), lambda z: 1.0 + 4.0 / (1 + 3 * math.exp(-z))),
    ],
)
def test_coordinates_begin_at_zero_and_know_no_bounds(unknown, theta):
    start = torch.tensor(2.0, dtype=F64)
    for z in (0.0, 0.7, -1.3):
        value = unknown.value(torch.tensor(z, dtype=F64), start, unknown.unit(start))
        assert value.item() == pytest.approx(theta(z), rel=1e-12)


def test_a_sloppy_combination_is_named():
    """Only the product a·b enters: the Fisher matrix is singular, and the fit says so."""

    class Product(DampedOscillator):
        def __init__(self):
            super().__init__()
            self.b = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))

        def rhs(self, t, y):
            x, v = y.unbind(-1)
            return torch.stack([v, -self.omega * self.b * x - self.gamma * v], -1)

    model = Assimilation(Product(), step=0.1)
    with pytest.warns(UserWarning, match="not determined"):
        found = estimates(model, batch_of(oscillators(trajectories=1)))
    assert found.condition > 1e10


def test_refusals_name_what_is_wrong():
    (which, times), values = batch = batch_of(oscillators(trajectories=2))
    with pytest.raises(ValueError, match="no parameter 'mass'; there are omega, gamma"):
        Assimilation(DampedOscillator(), {"mass": Unknown()})
    with pytest.raises(ValueError, match="no component 'z'; there are x, v"):
        Assimilation(DampedOscillator(), observed=("z",))
    with pytest.raises(ValueError, match="outside its bounds"):
        Assimilation(DampedOscillator(), {"omega": Unknown(init=-1.0, lower=0.0)})
    model = Assimilation(DampedOscillator(), systems=2, step=0.1)
    with pytest.raises(ValueError, match=r"\(B, T, 2\)"):
        model.training_loss(((which, times), values[..., :1]))
    with pytest.raises(ValueError, match="trajectory 1 of systems=1"):
        Assimilation(DampedOscillator()).training_loss(batch)
    nothing = values.clone()
    nothing[1, :, 1] = math.nan
    with pytest.raises(ValueError, match="v of trajectory 1 was never observed"):
        model.training_loss(((which, times), nothing))
    with pytest.raises(ValueError, match="segments"):
        Assimilation(DampedOscillator(), systems=2, segments=200).training_loss(batch)
    with pytest.raises(ValueError, match="in order"):
        LevenbergMarquardt(model).advance(((which.flip(0), times), values))
    with pytest.raises(ValueError, match="not linear"):
        Assimilation(DampedOscillator(), systems=2, step=0.1, warm_start=True).training_loss(batch)


def test_a_solution_that_explodes_is_named_at_first_and_a_wall_later():
    (which, times), values = batch = batch_of(oscillators(trajectories=1))
    unstable = Assimilation(DampedOscillator(50.0, 0.1), step=0.1)  # ωh = 5: outside the stability of RK4
    with pytest.raises(ValueError, match=r"of trajectory 0 leaves the finite numbers at time .*step=0.1"):
        unstable.training_loss(((which, times * 5), values))
    model = Assimilation(DampedOscillator(2.0, 0.3), step=0.1)
    model.training_loss(batch)
    with torch.no_grad():
        model.z["omega"].fill_(math.inf)
    loss = model.training_loss(batch)
    assert loss.item() == pytest.approx(1e10)


def test_simulated_trajectories_are_solutions_with_noise():
    data = SimulatedTrajectories(
        LotkaVolterra(), 4, 50, 10.0, [(0.1, 1.0)] * 2, parameters={"alpha": (0.1, 1.0)}, noise=0.02, seed=3
    )
    (which, times), values = batch_of(data)
    assert which.tolist() == [0, 1, 2, 3] and values.shape == (4, 50, 2)
    assert data.truth["alpha"].min() >= 0.1 and data.truth["alpha"].max() <= 1.0
    again = integrate(LotkaVolterra(), data.states[:, 0], uniform_grid(times[0], 0.01), data.truth)
    assert torch.allclose(again.movedim(0, 1), data.states, rtol=1e-12)
    level = ((values - data.states) / data.states.std(1, keepdim=True)).std()
    assert float(level) == pytest.approx(0.02, rel=5 / math.sqrt(2 * values.numel()))


def test_masses_of_three_bodies_from_where_they_were_seen():
    """Positions alone, by Verlet steps; masses begin 50 % off and end within 5 standard errors."""
    truth = Gravity((4.0, 1.0, 0.5), softening=0.1)
    sides = [(-0.1, 0.1), (-0.1, 0.1), (0.9, 1.1), (-0.1, 0.1), (-0.1, 0.1), (-1.7, -1.5)]
    speeds = [(-0.1, 0.1), (-0.1, 0.1), (-0.1, 0.1), (1.9, 2.1), (1.5, 1.7), (-0.1, 0.1)]
    data = SimulatedTrajectories(
        truth, 2, 61, 3.0, [*sides, *speeds], noise=0.01, observed=truth.components[:6]
    )
    batch = batch_of(data)
    model = Assimilation(
        Gravity((3.0, 1.5, 0.7), softening=0.1), {"masses": Unknown(lower=0.0)}, systems=2, segments=20,
        step=0.0125, method="verlet", observed=truth.components[:6], relative_noise=0.01,
    )  # fmt: skip
    method = LevenbergMarquardt(model, matching=(1e-2, 1.0, 1e4), iterations=5)
    for _ in range(15):
        method.advance(batch)
    found = estimates(model, batch)
    off = (found.values["masses"] - truth.masses).abs()
    assert (off < 5 * found.standard_errors["masses"]).all() and (off < 0.1).all()


def test_a_prior_is_one_more_observation():
    """What the data leave open goes to where the prior is, with the width of the prior; both optimizers mind
    the same loss."""

    class Product(DampedOscillator):
        def __init__(self):
            super().__init__(4.0, 0.3)
            self.b = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))

        def rhs(self, t, y):
            x, v = y.unbind(-1)
            return torch.stack([v, -self.omega * self.b * x - self.gamma * v], -1)

    batch = batch_of(oscillators(trajectories=1))
    unknowns = {"omega": Unknown(init=3.0, lower=0.0), "b": Unknown(lower=0.0, prior=0.1)}
    model = Assimilation(Product(), unknowns, step=0.11, segments=10, relative_noise=0.01)
    method = LevenbergMarquardt(model, matching=(1.0, 1e4), iterations=10)
    for _ in range(20):
        method.advance(batch)
    found = estimates(model, batch)
    assert float(found.values["b"]) == pytest.approx(1.0, abs=1e-3)  # a hundredth of its width
    assert float(found.standard_errors["b"]) == pytest.approx(0.1, rel=1e-3)
    assert float(found.values["omega"]) == pytest.approx(4.0, rel=0.01)
    loss = model.training_loss(batch)
    slopes = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    assert max(float(s.abs().max()) for s in slopes) < 1e-5  # their minimum is the same
    with torch.no_grad():
        model.z["b"] += 0.3
        model.z["omega"] -= 0.3
    lifted = model.training_loss(batch)
    assert (lifted - loss).item() == pytest.approx((0.3 / 0.1) ** 2 / 2 / 160, rel=1e-3)


def test_a_prior_on_hidden_beginnings():
    """½ ((v(0) - v_b)/s)² and nothing for what was seen."""
    batch = batch_of(oscillators(observed=("x",)))
    options = {"systems": 3, "segments": 2, "step": 0.1, "observed": ("x",), "initial_state": (0.0, 0.5)}
    free = Assimilation(DampedOscillator(2.0, 0.3), **options)
    held = Assimilation(DampedOscillator(2.0, 0.3), hidden_prior=0.2, **options)
    for model in (free, held):
        model.begin(batch)
        with torch.no_grad():
            model.states.fill_(0.7)
    numbers = 3 * 80
    away = held.initial_states()[:, 0, 1] - 0.5
    expected = (away / 0.2).square().sum() / (2 * numbers)
    assert (held.training_loss(batch) - free.training_loss(batch)).item() == pytest.approx(
        expected.item(), rel=1e-10
    )


def test_projected_bounds_are_reached_and_left_again():
    """The true damping lies beyond the bound: the fit stops there and says so; with room it goes on."""
    batch = batch_of(oscillators())
    unknown = {"gamma": Unknown(init=0.2, lower=0.1, upper=0.25, bounds="project")}
    model = Assimilation(DampedOscillator(2.0, 0.2), unknown, systems=3, step=0.1, relative_noise=0.01)
    optimizer = torch.optim.SGD([model.z["gamma"]], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        model.training_loss(batch).backward()
        optimizer.step()
    assert model.estimates()["gamma"].item() == pytest.approx(0.25, abs=1e-12)
    with pytest.warns(UserWarning, match="gamma ended at a bound"):
        estimates(model, batch)
    with torch.no_grad():
        model.z["gamma"].fill_(7.0)  # far beyond; the gradient of a clamp would be 0 there
        model.project()
        assert float(0.2 + 0.2 * model.z["gamma"]) == pytest.approx(0.25)
    model.z["gamma"].grad = None
    model.training_loss(batch).backward()
    assert model.z["gamma"].grad.abs() > 0
    with pytest.raises(ValueError, match="transform or project"):
        Unknown(bounds="clip")  # type: ignore[arg-type]


def test_a_transformed_parameter_that_runs_away_is_said_to_be_at_its_bound():
    class Undamped(DampedOscillator):
        pass

    data = SimulatedTrajectories(Undamped(2.0, 0.0), 2, 60, 6.0, [(0.5, 1.5), (-1.0, 1.0)])
    batch = batch_of(data)
    model = Assimilation(
        DampedOscillator(2.0, 0.3), {"gamma": Unknown(lower=0.0)}, systems=2, step=0.1, relative_noise=0.01
    )
    with torch.no_grad():
        model.begin(batch)
        model.z["gamma"].fill_(-8.0)
    with pytest.warns(UserWarning, match="gamma ended at a bound"):
        estimates(model, batch)


@pytest.mark.parametrize("stepwise", [False, True])
def test_an_unknown_that_no_observation_depends_on_is_named(stepwise):
    class Idle(DampedOscillator):
        def __init__(self):
            super().__init__()
            self.spare = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))

        def rhs(self, t, y):
            return super().rhs(t, y) + 0 * self.spare

    batch, model = batch_of(oscillators(trajectories=1)), Assimilation(Idle(), step=0.1)
    with pytest.warns(UserWarning, match="spare is exactly 0"):
        LevenbergMarquardt(model).advance(batch) if stepwise else model.training_loss(batch)
    model.training_loss(batch)  # said once

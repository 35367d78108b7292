"""Gaussian-process optimisation of a simulated equation, and the route from recorded positions to numbers."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from observatory.data import LangevinTrajectories, read_trajectories
from observatory.physics.gle import (
    DoubleWell,
    Harmonic,
    MemoryKernel,
    RecordedKernel,
    SimulationFit,
    exponential_kernel,
    extract_kernel,
    random_force,
    simulate,
)
from observatory.physics.gle.linear import half_step_velocity_correlation, powers, transition
from observatory.physics.gle.matching import matched_correlations, mismatch
from observatory.physics.gle.repeating import Repeating
from observatory.training import Iterate

ONE = torch.tensor(1.0, dtype=torch.float64)


def rarely_seen(samples: int = 300, lanes: int = 256) -> torch.Tensor:
    """k = m = kT = 1, γ = 10, τ = ½ at Δt = 1 = 2τ."""
    return simulate(
        exponential_kernel([10.0], [0.5]), Harmonic(1.0), mass=1.0, kT=1.0, step=0.1, samples=samples,
        lanes=lanes, stride=10, dtype=torch.float32, generator=torch.Generator().manual_seed(11),
    )  # fmt: skip


def method(**changes) -> SimulationFit:
    arguments = {
        "dt": 1.0, "kT": 1.0, "mass": (0.05, 5.0), "gamma": [(2.0, 50.0)], "tau": [(0.05, 5.0)], "step": 0.2,
        "lags": 30, "potential": Harmonic(1.0), "lanes": 256, "samples": 150, "batch": 8, "budget": 40,
    }  # fmt: skip
    return SimulationFit(**(arguments | changes))


def test_simulated_correlations_are_those_of_the_closed_form():
    """C_xx(nΔt) = (Fⁿ)_xx and its second difference, to 5 standard errors of 256 lanes."""
    x = rarely_seen()
    found = matched_correlations(x, 1.0, Harmonic(1.0).gradient, 20)
    xx = powers(transition(exponential_kernel([10.0], [0.5]), ONE, ONE, 1.0), 21)[:, 0, 0]
    each = matched_correlations(x[:, None], 1.0, Harmonic(1.0).gradient, 20)
    error = each.std(0) / math.sqrt(len(x))
    exact = torch.stack([half_step_velocity_correlation(xx, 1.0), xx[:-1], xx[:-1]])
    assert float(((found - exact).abs() / error).max()) < 5
    assert float(mismatch(exact, exact)) == 0


def test_fit_above_the_memory_time_recovers_friction():
    """Δt = 2τ: γ within 10 %, the mass not identified (what τ can be told of: see the slow test)."""
    fit, x = method(), rarely_seen()
    for _ in range(5):
        scalars = fit.advance(x)
    assert int(fit.search.count) == 40
    assert scalars["friction"] == pytest.approx(10.0, rel=0.1)
    assert scalars["friction_low"] < 10.0 < scalars["friction_high"]
    assert not fit.incumbent.mass_identified
    assert scalars["mass_low"] < 1.0 < scalars["mass_high"]
    assert scalars["excess"] < 0.7  # the loss is at most twice that between two simulations
    before = fit.search.theta.clone()
    fit.advance(x)  # the budget is spent
    assert torch.equal(before, fit.search.theta)


def test_interrupted_optimisation_goes_on_as_if_nothing_had_happened(tmp_path):
    x, whole = rarely_seen(100, 64), method(lanes=32, samples=60, budget=32)
    for _ in range(4):
        whole.advance(x)
    first, second = method(lanes=32, samples=60, budget=32), method(lanes=32, samples=60, budget=32)
    for _ in range(2):
        first.advance(x)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.advance(x)
    assert torch.equal(second.search.theta, whole.search.theta) and torch.equal(
        second.search.losses, whole.search.losses
    )


def test_the_loop_stops_where_data_cannot_be_told_from_a_simulation(tmp_path):
    """`excess` is logged and stopped at, long before the budget of sets is spent."""
    x = rarely_seen(150, 64)
    module = Iterate(method(lanes=64, samples=120, budget=160))
    stop = EarlyStopping("train/excess", strict=False, stopping_threshold=math.log(2), patience=1000)
    trainer = pl.Trainer(
        max_epochs=20, accelerator="cpu", logger=False, callbacks=[stop], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(x), batch_size=len(x)))
    assert int(module.method.search.count) < 160
    assert module.method.incumbent.explains
    assert float(trainer.callback_metrics["train/excess"]) <= math.log(2)


def test_a_swinging_kernel_is_searched_and_kept_in_order():
    """Five unknowns of two cosines and one exponential at the right places of the vector."""
    wide = ((0.1, 10.0), (0.1, 10.0), (0.5, 20.0))
    fit = method(cosines=[wide, wide], lanes=16, samples=60, budget=24, batch=24, initial=2, mass=(0.5, 2.0))
    x = rarely_seen(100, 16)
    scalars = fit.advance(x)
    assert fit.search.theta.shape == (24, 9) and scalars["evaluations"] == 24
    kernel, values = fit.kernel, fit.incumbent.parameters
    assert kernel.tau.shape == (1,) and kernel.frequency.shape == (2,)
    assert bool(kernel.frequency.diff() >= 0) and float(kernel.friction()) == pytest.approx(
        scalars["friction"]
    )
    assert sorted(kernel.amplitude.tolist()) == pytest.approx(sorted(values[3:5].tolist()))
    assert fit.particle.observed(1.0, step=0.2, samples=3, lanes=2).shape == (2, 3)


def test_what_flies_apart_excludes_nothing(monkeypatch):
    """Repeats at the optimum with a NaN among them say nothing; a step too long for every set is refused."""
    fit, x = method(lanes=16, samples=60, budget=16), rarely_seen(100, 16)
    fit.advance(x)
    simulated = Repeating.correlations

    def one_apart(self: Repeating, *arguments, common: bool) -> torch.Tensor:
        found = simulated(self, *arguments, common=common)
        found[0] = found[0] if common else math.nan
        return found

    monkeypatch.setattr(Repeating, "correlations", one_apart)
    assert fit.advance(x)["excess"] == math.inf
    assert not fit.incumbent.mass_identified and not fit.incumbent.explains
    monkeypatch.undo()
    hopeless = method(mass=(1e-5, 1e-4), step=1.0, lanes=16, samples=60, budget=8, potential=DoubleWell(2.0))
    with pytest.raises(ValueError, match="all 8 simulations flew apart"):
        hopeless.advance(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("search", "library"), [("gaussian_process", "sklearn"), ("botorch", "botorch"), ("cma", "cma")]
)
def test_fit_recovers_friction_and_memory_time_at_twice_the_memory_time(search, library):
    """γ within 10 %, τ within 20 % at Δt = 2τ, whichever library proposes."""
    pytest.importorskip(library)
    fit = method(lanes=2048, samples=300, step=0.1, budget=80, search=search)
    x = rarely_seen(2000, 512)
    for _ in range(10):
        scalars = fit.advance(x)
    assert scalars["friction"] == pytest.approx(10.0, rel=0.1)
    assert scalars["memory_time"] == pytest.approx(0.5, rel=0.2)
    assert not fit.incumbent.mass_identified


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mass": (1.0, 0.5)}, "from a positive number to a larger one"),
        ({"tau": [(0.0, 1.0)]}, "from a positive number to a larger one"),
        ({"tau": [(0.1, 1.0), (1.0, 2.0)]}, "every friction needs its time"),
        ({"step": 2.0}, "step ≤ dt"),
        ({"samples": 20}, "more samples than lags"),
    ],
)
def test_what_cannot_be_searched_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        method(**change)


def test_random_force_obeys_the_fluctuation_dissipation_theorem():
    """⟨F(0)F(t)⟩/kT = Γ(t), Gaussian: 1.3·10⁶ points, τ = ½, hence 10⁵ correlation times."""
    kernel = exponential_kernel([4.0], [0.5])
    x = simulate(
        kernel, DoubleWell(2.0), mass=1.0, kT=1.0, step=0.02, samples=20_000, lanes=64, dtype=torch.float32,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    G = kernel.integral(0.02 * torch.arange(300, dtype=torch.float64))
    found = random_force(x, G, 0.02, 1.0, DoubleWell(2.0), ONE)
    t = 0.02 * torch.arange(300, dtype=torch.float64)
    torch.testing.assert_close(found.autocorrelation[1:100], kernel.at(t)[1:100], rtol=0, atol=0.05 * 8)
    assert abs(float(found.excess_kurtosis)) < 0.05
    with pytest.raises(ValueError, match="too few"):
        random_force(x[:, :500], G, 0.02, 1.0, DoubleWell(2.0), ONE)


def test_the_one_loop_extracts_and_a_checkpoint_holds_what_it_found(tmp_path):
    data = LangevinTrajectories(
        DoubleWell(2.0), [3.0, 5.0], [0.3, 2.0], dt=0.05, step=0.05, samples=4000, lanes=8
    )
    module = Iterate(RecordedKernel(0.05, 1.0, 100, resamples=20))
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=logger, log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    assert trainer.global_step == 1
    direct = extract_kernel(data.train.x[..., 0], 0.05, 1.0, n_lags=100)
    torch.testing.assert_close(module.method.kernel.G, direct.G)
    assert float(trainer.callback_metrics["train/friction"]) == pytest.approx(
        float(direct.friction), rel=1e-6
    )
    trainer.save_checkpoint(tmp_path / "end.ckpt", weights_only=False)
    again = Iterate(RecordedKernel(0.05, 1.0, 100))
    again.load_state_dict(torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"])
    torch.testing.assert_close(again.method.kernel.G_band.low, module.method.kernel.G_band.low)
    events = EventAccumulator(str(tmp_path), {"images": 0}).Reload()
    assert events.Tags()["images"] == ["memory_kernel"]
    with pytest.raises(ValueError, match="no trajectories"):
        _ = RecordedKernel(0.05, 1.0, 100).kernel


def test_saved_kernels_come_back(tmp_path):
    x = rarely_seen(200, 16)
    found = extract_kernel(
        x, 1.0, 1.0, n_lags=20, bins=20, resamples=10, generator=torch.Generator().manual_seed(0)
    )
    found.save(tmp_path / "kernel.npz")
    back = MemoryKernel.load(tmp_path / "kernel.npz")
    for name in ("t", "G", "Gamma", "mass", "residual"):
        torch.testing.assert_close(getattr(back, name), getattr(found, name))
    at = torch.linspace(-1, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(back.free_energy.gradient(at), found.free_energy.gradient(at))
    torch.testing.assert_close(back.G_band.error, found.G_band.error)


def test_files_of_gromacs_are_trajectories(tmp_path):
    text = (
        '# made by a program\n@    title "distance"\n@ s0 legend "end to end"\n0.0 1.5\n0.2 1.25\n0.4 1.75\n'
    )
    (tmp_path / "distance.xvg").write_text(text)
    found = read_trajectories(tmp_path / "distance.xvg")
    assert found.dt == pytest.approx(0.2)
    assert found.names == ("end to end",)
    assert found.x.tolist() == [[[1.5], [1.25], [1.75]]]
    (tmp_path / "uneven.xvg").write_text("0.0 1\n0.2 1\n0.5 1\n")
    with pytest.raises(ValueError, match="not regular"):
        read_trajectories(tmp_path / "uneven.xvg")

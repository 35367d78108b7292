"""Free energies that are trained, and particles that are kept in files."""

from __future__ import annotations

import pytest
import torch
import yaml

from observatory.data import LangevinTrajectories
from observatory.physics.gle import (
    DoubleWell,
    Harmonic,
    Particle,
    SimulatedGLE,
    SplinePotential,
    exponential_kernel,
    free_energy,
    simulate,
)

KERNEL = exponential_kernel([3.0, 5.0], [0.3, 2.0], instantaneous=0.2, cosines=[(4.0, 0.5, 3.0)])


def draws(count: int) -> torch.Tensor:
    """Positions in a double well of 2 kT."""
    return simulate(
        exponential_kernel([1.0], [0.1]), DoubleWell(2.0), mass=1.0, kT=1.0, step=0.05, samples=1,
        lanes=count, generator=torch.Generator().manual_seed(0),
    )[:, 0]  # fmt: skip


def test_a_spline_goes_through_a_cubic_and_near_a_quartic():
    """Cubics are splines; the fourth derivative 24 U₀ leaves an error below 24 U₀ h⁴/384 on intervals h."""
    x = torch.linspace(-1.4, 1.4, 57, dtype=torch.float64)
    parabola = SplinePotential.through(Harmonic(3.0), -1.5, 1.5, 4)
    torch.testing.assert_close(parabola.energy(x).detach(), 1.5 * x**2, rtol=0, atol=1e-12)
    torch.testing.assert_close(parabola.gradient(x).detach(), 3 * x, rtol=0, atol=1e-12)
    well = SplinePotential.through(DoubleWell(2.0), -1.5, 1.5, 12)
    bound = 24 * 2.0 * well.width**4 / 384
    assert float((well.energy(x) - DoubleWell(2.0).energy(x)).detach().abs().max()) < 2 * bound
    far = torch.tensor([-9.0, -3.0, 3.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(parabola.gradient(far).detach(), 3 * far)  # U' goes on linearly
    torch.testing.assert_close(parabola.energy(far).detach(), 1.5 * far**2)


def test_slopes_are_those_of_the_energy():
    spline = SplinePotential(-1.0, 2.0, [0.3, -0.2, 1.0, 0.7, -0.4, 0.1, 0.9])
    x = torch.linspace(-2, 3, 41, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(spline.energy(x).sum(), x)
    torch.testing.assert_close(spline.gradient(x), slope, rtol=0, atol=1e-12)


def test_the_most_likely_spline_is_the_free_energy_of_the_draws():
    """20 000 independent draws: the error of U is some 1/√(draws per interval)."""
    x = draws(20_000)
    spline = SplinePotential(-2.0, 2.0, [0.0] * 13)
    optimizer = torch.optim.LBFGS(spline.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = spline.surprise(x, 1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    at = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    U = spline.energy(at).detach()
    torch.testing.assert_close(U - U[0], DoubleWell(2.0).energy(at), rtol=0, atol=5 / (20_000 / 40) ** 0.5)
    # Gibbs: no other U has a lower mean of U/kT + ln Z under the draws' own distribution, up to sampling
    true = SplinePotential.through(DoubleWell(2.0), -2, 2)
    assert spline.surprise(x, 1.0).item() < true.surprise(x, 1.0).item()


def test_kernel_and_free_energy_are_trained_together():
    """Gradients of the loss by the coefficients of U, through the start, the steps and the likelihood."""
    x = simulate(
        exponential_kernel([10.0], [0.5]), DoubleWell(2.0), mass=1.0, kT=1.0, step=0.05, samples=60, lanes=32,
        stride=2, generator=torch.Generator().manual_seed(9),
    )  # fmt: skip
    U = SplinePotential.through(DoubleWell(1.5), -2.0, 2.0, 6)
    model = SimulatedGLE(0.1, 1.0, U, 1.4, (7.0,), (0.3,), stride=2, lags=10, lanes=16, samples=30)
    model.training_loss(x).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        "log_mass", "log_gamma", "log_tau", "potential.coefficients",
    }  # fmt: skip
    for k in (2, 4):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                U.coefficients[k] += sign * 1e-5
                ends.append(float(model.training_loss(x)))
                U.coefficients[k] -= sign * 1e-5
        assert float(U.coefficients.grad[k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
    plain = model.particle.observed(0.1, step=0.05, samples=3, lanes=4).detach()
    assert plain.shape == (4, 3)


@pytest.mark.parametrize(
    "potential", [Harmonic(2.0), DoubleWell(2.0, 0.7), SplinePotential(-1, 1, [1, 2, 0, 2, 1])]
)
def test_particles_come_back_from_their_files(potential, tmp_path):
    Particle(KERNEL, potential, 1.5, 0.8).save(tmp_path / "bead.yaml")
    back = Particle.load(tmp_path / "bead.yaml")
    t = torch.linspace(0.1, 5, 7, dtype=torch.float64)
    assert torch.equal(back.kernel.integral(t), KERNEL.integral(t))
    assert (back.mass, back.kT) == (1.5, 0.8)
    assert torch.equal(back.potential.gradient(t), potential.gradient(t))


def test_a_file_holds_the_arguments_of_a_data_module(tmp_path):
    from jsonargparse import ArgumentParser

    Particle(KERNEL, DoubleWell(2.0), 1.5, 0.8).save(tmp_path / "bead.yaml")
    parser = ArgumentParser()
    parser.add_class_arguments(LangevinTrajectories, "data")
    entries = yaml.safe_load((tmp_path / "bead.yaml").read_text())
    made = parser.instantiate_classes(
        parser.parse_object({"data": entries | {"samples": 5, "lanes": 2}})
    ).data
    made.setup("fit")
    assert made.train.x.shape == (2, 5, 1)
    assert torch.equal(made.particle.kernel.amplitude, KERNEL.amplitude)


def test_a_measured_free_energy_is_written_as_a_spline(tmp_path):
    """12 pieces of cubics on knots of their own: 64 intervals follow them to 10⁻³ kT."""
    table = free_energy(draws(100_000), 1.0)
    Particle(KERNEL, table, 1.0, 1.0).save(tmp_path / "bead.yaml")
    back = Particle.load(tmp_path / "bead.yaml").potential
    x = torch.linspace(float(table.x[0]), float(table.x[-1]), 999, dtype=torch.float64)
    assert float((back.energy(x) - table.energy(x)).detach().abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"mass": -1.0}, "mass and kT must be positive"),
        ({"gamma": [-1.0], "tau": [1.0]}, "at least 0"),
        ({"tau": [0.0, 1.0]}, "positive"),
        ({"potential": {"class_path": "os.system"}}, "unknown"),
    ],
)
def test_files_that_describe_no_particle_are_refused(entries, message, tmp_path):
    Particle(KERNEL, Harmonic(1.0), 1.0, 1.0).save(tmp_path / "bead.yaml")
    content = yaml.safe_load((tmp_path / "bead.yaml").read_text()) | entries
    (tmp_path / "bead.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        Particle.load(tmp_path / "bead.yaml")


def test_what_a_file_cannot_hold_is_said(tmp_path):
    (tmp_path / "empty.yaml").write_text("gamma: [1.0]\n")
    with pytest.raises(ValueError, match="kT, mass, potential, tau missing"):
        Particle.load(tmp_path / "empty.yaml")
    two = exponential_kernel([[1.0], [2.0]], [0.5])
    with pytest.raises(ValueError, match="one particle"):
        Particle(two, Harmonic(1.0), 1.0, 1.0).save(tmp_path / "two.yaml")
    with pytest.raises(ValueError, match="at least 5 coefficients"):
        SplinePotential(0.0, 1.0, [1.0])

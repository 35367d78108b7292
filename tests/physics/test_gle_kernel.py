"""Parametric kernels, exact correlations and the extraction of kernels, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from observatory.physics.gle import (
    DoubleWell,
    Harmonic,
    exponential_kernel,
    extract_kernel,
    fit_exponentials,
    free_energy,
    invert_correlations,
    kernel_of_correlations,
    simulate,
)
from observatory.physics.gle.embedding import generator_matrix
from observatory.physics.gle.inversion import velocity_correlation
from observatory.physics.gle.linear import half_step_velocity_correlation, powers, transition

KERNEL = exponential_kernel([3.0, 5.0], [0.3, 2.0])
ONE = torch.tensor(1.0, dtype=torch.float64)
TABLE = {  # Δt: largest error of G on [0, 5] with exact, half-step, central velocities; m̂ of half steps
    0.2: (0.174, 0.042, 0.254, 1.0453),
    0.1: (0.048, 0.0114, 0.063, 1.0116),
    0.05: (0.0124, 0.00288, 0.0158, 1.0030),
    0.025: (0.0032, 0.00072, 0.0042, 1.0007),
}


def exact_correlations(dt: float, n: int) -> dict[str, torch.Tensor]:
    """kT = m = 1, U = x²: C_xU' and C_vv of the three velocities, without sampling."""
    P = powers(transition(KERNEL, ONE, 2 * ONE, dt), n + 2)
    xx, i = P[:, 0, 0] / 2, torch.arange(n)
    return {
        "xf": 2 * xx[:n],
        "exact": P[:n, 1, 1],
        "half_step": half_step_velocity_correlation(xx[: n + 1], dt),
        "central": (2 * xx[:n] - xx[i + 2] - xx[(i - 2).abs()]) / (4 * dt**2),
    }


def exact_accelerations(dt: float, n: int) -> dict[str, torch.Tensor]:
    """C_vv, C_va = Ċ_vv, C_aa = -C̈_vv, C_vU' and C_aU' = -Ċ_vU' of the same particle, from its generator."""
    inner = generator_matrix(KERNEL, ONE)
    A = torch.nn.functional.pad(inner, (1, 0, 1, 0))
    A[0, 1], A[1, 0] = 2**0.5, -(2**0.5)
    P = powers(transition(KERNEL, ONE, 2 * ONE, dt), n)
    vv, va, aa = P[:, 1, 1], (A @ P)[:, 1, 1], -(A @ A @ P)[:, 1, 1]
    return {"vv": vv, "va": va, "aa": aa, "vf": 2**0.5 * P[:, 0, 1], "af": -(2**0.5) * (A @ P)[:, 0, 1]}


def errors_of_G(dt: float) -> tuple[float, ...]:
    n = round(5 / dt) + 1
    c = exact_correlations(dt, n)
    expected = KERNEL.integral(dt * torch.arange(n, dtype=torch.float64))
    velocities = (c[name] for name in ("exact", "half_step", "central"))
    return tuple(
        float((kernel_of_correlations(v, c["xf"], dt)[0] - expected).abs().max()) for v in velocities
    )


@pytest.mark.parametrize("dt", TABLE)
def test_table_of_accuracy_on_exact_correlations(dt):
    """To 2 %, and to the digits that the table prints."""
    for found, printed in zip(errors_of_G(dt), TABLE[dt][:3], strict=True):
        digit = 0.5 * 10 ** math.floor(math.log10(printed) - 1)
        assert found == pytest.approx(printed, rel=0.02, abs=digit)
    c = exact_correlations(dt, 2)
    assert float(c["xf"][0] / c["half_step"][0]) == pytest.approx(TABLE[dt][3], abs=6e-5)


def test_all_three_velocities_converge_in_second_order():
    steps = [0.1, 0.05, 0.025, 0.0125]
    errors = np.array([errors_of_G(dt) for dt in steps])
    for column in errors.T:
        assert np.polyfit(np.log(steps), np.log(column), 1)[0] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(("dt", "printed"), [(0.2, 1.49), (0.1, 0.68), (0.05, 0.20), (0.025, 0.052)])
def test_equation_of_the_second_kind_on_exact_correlations(dt, printed):
    """The last column of the table: the largest error of Γ on [0, 5], to the digits printed; Γ(0) = 12.5."""
    n = round(5 / dt) + 1
    mass, _, _, Gamma = invert_correlations(exact_accelerations(dt, n), dt, 1.0, equation="second_kind")
    expected = KERNEL.at(dt * torch.arange(n, dtype=torch.float64))
    digit = 0.5 * 10 ** math.floor(math.log10(printed) - 1)
    assert float((Gamma - expected).abs().max()) == pytest.approx(printed, rel=0.02, abs=digit)
    assert (float(mass), float(Gamma[0])) == pytest.approx((1.0, 12.5), rel=1e-9)


@pytest.mark.parametrize(("rule", "order"), [("trapezoid", 2), ("midpoint", 2), ("rectangle", 1)])
@pytest.mark.parametrize("equation", ["first_kind", "force", "integrated"])
def test_rules_of_quadrature_have_their_orders(equation, rule, order):
    """Slopes of the largest error of G over three steps, of exact correlations: 2, 2 and 1."""
    errors = []
    for dt in (0.025, 0.0125, 0.00625):
        n = round(5 / dt) + 1
        c = exact_accelerations(dt, n) | {"xf": exact_correlations(dt, n)["xf"]}
        G = invert_correlations(c, dt, 1.0, equation=equation, rule=rule)[2]
        errors.append(float((G - KERNEL.integral(dt * torch.arange(n, dtype=torch.float64))).abs().max()))
    assert np.polyfit(np.log([4, 2, 1]), np.log(errors), 1)[0] == pytest.approx(order, abs=0.15)


def test_a_kernel_gives_back_the_velocity_correlation():
    """From exact G and C_xU', C_vv to second order."""
    c, n = exact_correlations(0.05, 101), 101
    G = KERNEL.integral(0.05 * torch.arange(n, dtype=torch.float64))
    back = [velocity_correlation(G[::k], c["xf"][::k], ONE, 0.05 * k) - c["exact"][::k] for k in (1, 2)]
    fine, coarse = (float(error.abs().max()) for error in back)
    assert fine < 2e-3 and coarse / fine == pytest.approx(4, rel=0.1)


def test_a_correlation_that_is_missing_is_named():
    with pytest.raises(ValueError, match="needs the correlations va, aa, af as well"):
        invert_correlations({"vv": torch.ones(3)}, 0.1, 1.0, equation="second_kind")


def test_true_mass_with_finite_differences_makes_G_jump():
    c = exact_correlations(0.05, 40)
    G, _ = kernel_of_correlations(c["half_step"], c["xf"], 0.05, mass=ONE)
    right, _ = kernel_of_correlations(c["half_step"], c["xf"], 0.05)
    offset = 2 * (1.00296 - 1) / 0.05  # 2(m̂ - m)/Δt
    assert float(G[1] - right[1]) == pytest.approx(offset, rel=0.1)


def test_kernel_of_a_sampled_harmonic_oscillator_by_four_equations():
    """3.2·10⁶ points of length 8·10⁴: the friction of 8 has a standard error near 3 %."""
    generator = torch.Generator().manual_seed(1)
    x = simulate(
        KERNEL, Harmonic(2.0), mass=1.0, kT=1.0, step=0.025, samples=50_000, lanes=64,
        dtype=torch.float32, generator=generator,
    )  # fmt: skip
    t = 0.025 * torch.arange(200, dtype=torch.float64)
    for equation in ("integrated", "force", "first_kind", "second_kind"):
        found = extract_kernel(x, 0.025, 1.0, n_lags=200, potential=Harmonic(2.0), equation=equation)
        assert float((found.G - KERNEL.integral(t)).abs().max()) < 0.15 * 8
        assert float(found.mass) == pytest.approx(1.0, rel=0.03)


def test_bands_are_the_scatter_between_independent_runs():
    generator = torch.Generator().manual_seed(2)
    x = simulate(
        KERNEL, Harmonic(2.0), mass=1.0, kT=1.0, step=0.05, samples=5000, lanes=128,
        dtype=torch.float32, generator=generator,
    ).reshape(16, 8, 5000)  # fmt: skip
    runs = [
        extract_kernel(y, 0.05, 1.0, n_lags=60, potential=Harmonic(2.0), resamples=100, generator=generator)
        for y in x
    ]
    scatter = torch.stack([r.G for r in runs]).std(0)[30]
    claimed = torch.stack([r.G_band.error for r in runs]).mean(0)[30]
    assert 0.6 < float(claimed / scatter) < 1.5  # 16 runs know a spread to 18 %


def test_unequal_trajectories_weigh_as_their_products():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3000, dtype=torch.float64, generator=generator).cumsum(0) * 0.01
    x = x - x.mean()
    pieces = [x[:700], x[700:1900], x[1900:]]
    found = extract_kernel(pieces, 0.1, 1.0, n_lags=20, potential=Harmonic(1.0)).correlations["vv"]
    v = [p.diff() / 0.1 for p in pieces]
    sums = [sum(float((w[: len(w) - lag] * w[lag:]).sum()) for w in v) for lag in range(20)]
    count = [sum(len(w) - lag for w in v) for lag in range(20)]
    torch.testing.assert_close(found, torch.tensor(sums) / torch.tensor(count), check_dtype=False)


def test_friction_and_memory_time_of_a_kernel_are_its_integrals():
    kernel = exponential_kernel([3.0, 5.0], [0.3, 2.0], instantaneous=0.7, cosines=[(4.0, 0.5, 3.0)])
    t = torch.linspace(0, 60, 600_001, dtype=torch.float64)
    gamma = kernel.at(t)
    running = 0.7 + torch.cumulative_trapezoid(gamma, t)
    torch.testing.assert_close(kernel.integral(t)[1:], running, rtol=0, atol=1e-7)
    assert float(kernel.friction()) == pytest.approx(float(running[-1]), rel=1e-7)
    assert float(kernel.memory_time() * kernel.friction()) == pytest.approx(
        float(torch.trapezoid(t * gamma, t)), rel=1e-6
    )
    s = torch.tensor([0.3, 2.0], dtype=torch.float64)
    transform = 0.7 + torch.trapezoid(gamma * torch.exp(-s[:, None] * t), t)
    torch.testing.assert_close(kernel.laplace(s), transform, rtol=1e-6, atol=0)
    assert bool(kernel.admissible())


# 4 exponentials that stand in for alanine nonapeptide in water: u/ps and ps; kT = 2.4943 kJ/mol, m = 31 u
PEPTIDE = exponential_kernel([1282.0, 10_680.0, 43_066.0, 248_812.0], [0.00121, 3.18, 37.4, 409.0])


def test_stand_in_follows_the_running_friction_of_a_peptide():
    """G of alanine nonapeptide (Tepper, Dalton, Netz 2024) from 0.5 ps to 1 ns: 4 % root mean square."""
    t = torch.tensor([0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 999], dtype=torch.float64)
    measured = torch.tensor([3960, 6172, 9859, 17819, 27481, 42021, 72073, 105803, 151606, 229344, 284090])
    assert float((PEPTIDE.integral(t) / measured - 1).square().mean().sqrt()) < 0.04
    assert float(PEPTIDE.memory_time()) == pytest.approx(341, abs=1)


class Tilted:
    """A tilted quartic double well of some 3 kT, in kJ/mol and nm."""

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        y = x / 0.2
        return 7.5 * (y * y - 1) ** 2 + y

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        y = x / 0.2
        return (30 * y * (y * y - 1) + 1) / 0.2


@pytest.mark.slow
def test_kernel_over_five_decades_of_time_in_units_of_molecules():
    """25.6 ns in pieces of 0.1 ns: the errors of G are 20 %, the slowest memory being 0.4 ns.

    G rises to the end of the window, and the result says so.
    """
    generator = torch.Generator().manual_seed(0)
    x = simulate(
        PEPTIDE, Tilted(), mass=31.0, kT=2.4943, step=0.005, samples=20_000, lanes=256, generator=generator
    )
    found = extract_kernel(x, 0.005, 2.4943, n_lags=2001, resamples=20, generator=generator)
    for lag in (20, 200, 2000):
        expected = float(PEPTIDE.integral(found.t[lag : lag + 1])[0])
        assert float(found.G[lag]) == pytest.approx(expected, abs=3 * float(found.G_band.error[lag]))
        assert float(found.G_band.error[lag]) < 0.3 * expected
    assert float(found.mass) == pytest.approx(31.0, rel=0.1)  # the fastest memory damps within 5 steps
    assert found.still_rising


class Cosine:
    """U = -2 cos x, of a turning angle."""

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return -2 * x.cos()

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x.sin()


def test_an_angle_that_turns_round_and_round():
    """Wrapped to one turn, unwrapped for velocities, U' of period 2π: G(2) = 8 - 3e^{-20/3} - 5e^{-1}.

    10⁵ time units are 6·10⁴ memory times; the force enters by its histogram, hence 5 %.
    """
    generator = torch.Generator().manual_seed(6)
    start = torch.randn(200, generator=generator, dtype=torch.float64) / 2**0.5
    x = simulate(
        KERNEL, Cosine(), mass=1.0, kT=1.0, step=0.05, samples=10_000, lanes=200, burn_in=1000, start=start,
        dtype=torch.float32, generator=generator,
    )  # fmt: skip
    turns = float((x[:, -1] - x[:, 0]).abs().max()) / (2 * math.pi)
    assert turns > 3
    angle = torch.remainder(x, 2 * math.pi)
    found = extract_kernel(angle, 0.05, 1.0, n_lags=60, equation="force", period=2 * math.pi, bins=60)
    assert float(found.G[40]) == pytest.approx(float(KERNEL.integral(torch.tensor([2.0]))[0]), rel=0.05)
    assert float(found.mass) == pytest.approx(1.0, rel=0.03)  # of central velocities, 1 + O(Δt²)
    at = torch.linspace(-9, 9, 50, dtype=torch.float64)
    torch.testing.assert_close(found.free_energy.gradient(at), Cosine().gradient(at), rtol=0, atol=0.25)


def test_velocities_that_were_recorded_are_used():
    """Lags of C_vv are those of the given velocities, whatever the positions say of them."""
    generator = torch.Generator().manual_seed(7)
    x, v = torch.randn(2, 4, 500, dtype=torch.float64, generator=generator)
    found = extract_kernel(
        x, 0.1, 1.0, n_lags=10, potential=Harmonic(1.0), velocity="given", velocities=v
    ).correlations["vv"]
    inner = v[:, 1:-1]  # where a central difference would stand as well
    expected = torch.stack([(inner[:, : 498 - lag] * inner[:, lag:]).mean() for lag in range(10)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_kernel_with_negative_power_is_flagged():
    from dataclasses import replace

    wrong = replace(
        KERNEL, gamma=torch.tensor([-6.0, 5.0], dtype=torch.float64)
    )  # spectrum -6 + ... at high ω
    assert not bool(wrong.admissible())
    assert bool(KERNEL.admissible())


def test_free_energy_of_boltzmann_samples():
    x = torch.randn(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / math.sqrt(2)
    found = free_energy(x, 1.0)
    at = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64)
    torch.testing.assert_close(found.gradient(at), 2 * at, rtol=0, atol=0.12)
    energy = found.energy(at)
    torch.testing.assert_close(energy - energy[15], at**2, rtol=0, atol=0.03)
    far = torch.tensor([5.0, 6.0, 7.0], dtype=torch.float64)
    assert float(found.gradient(far).diff(n=2).abs().max()) < 1e-9  # linear outside


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kT": -1.0}, "thermal energy must be positive"),
        ({"dt": 0.0}, "time step must be positive"),
        ({"n_lags": 400}, "cannot be estimated"),
        ({"velocity": "backward"}, "velocity must be"),
        ({"period": 6.28}, "boundary term"),
        ({"times": torch.arange(300) * 0.1001}, "time stamps step"),
        ({"times": torch.arange(300, dtype=torch.float64) * (0.1 + 3e-7)}, "on average by 0.1000003"),
        ({"times": torch.arange(300) * 0.1 + (torch.arange(300) == 9) * 0.02}, "time stamps step"),
        ({"n_lags": 5, "t_max": 1.0}, "not both"),
        ({"equation": "third"}, "equation must be"),
        ({"rule": "simpson"}, "rule must be"),
        ({"velocity": "given"}, "needs velocities="),
    ],
)
def test_what_cannot_be_answered_is_refused_at_the_door(change, message):
    x = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    arguments = {"dt": 0.1, "kT": 1.0, "n_lags": 20, "potential": Harmonic(1.0)} | change
    if "t_max" not in change and "n_lags" not in change:
        arguments["n_lags"] = 20
    with pytest.raises(ValueError, match=message):
        extract_kernel(x, **arguments)


def test_positions_that_are_not_numbers_are_refused():
    x = torch.zeros(100)
    x[17] = torch.nan
    with pytest.raises(ValueError, match=r"first at index \[17\]"):
        extract_kernel(x, 0.1, 1.0)
    with pytest.raises(ValueError, match="fewer bins"):
        extract_kernel(torch.cat([torch.rand(500), 50 + torch.rand(500)]), 0.1, 1.0)
    with pytest.warns(UserWarning, match="fewer than 10"):
        extract_kernel(torch.randn(300), 0.1, 1.0, n_lags=100, potential=Harmonic(1.0))
    with pytest.raises(ValueError, match="at least 0"):
        exponential_kernel([-1.0], [1.0])


@pytest.mark.slow
def test_double_well_from_a_long_trajectory():
    """16·10⁶ steps; a single 10⁶ has a standard error of 4.5 % on G(5) from rare crossings of the barrier."""
    generator = torch.Generator().manual_seed(0)
    x = simulate(
        KERNEL, DoubleWell(2.0), mass=1.0, kT=1.0, step=0.01, samples=10**6, lanes=16,
        dtype=torch.float32, generator=generator,
    )  # fmt: skip
    found = extract_kernel(x, 0.01, 1.0, n_lags=1000, resamples=50, generator=generator)
    assert float(found.G[500]) == pytest.approx(7.5896, rel=0.03)
    assert float(found.Gamma[0]) == pytest.approx(12.5, rel=0.05)
    assert float(found.mass) == pytest.approx(1.0, rel=0.03)
    assert float(found.virial_ratio) == pytest.approx(1.0, abs=0.02)
    single = [extract_kernel(one, 0.01, 1.0, n_lags=1000) for one in x]
    G = torch.stack([one.G[500] for one in single])
    assert float(G.std()) < 0.06 * 7.5896
    assert all(abs(float(one.mass) - 1) < 0.06 for one in single)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 2.0, 5.0])
def test_direct_inversion_ends_at_the_memory_time_but_its_plateau_does_not(ratio):
    """k = m = 1, γ = 10, τ = ½, exact correlations: Γ(0) = 20 and τ are lost above Δt = τ, γ is not."""
    kernel, dt = exponential_kernel([10.0], [0.5]), 0.5 * ratio
    n = max(12, round(15 / dt))
    xx = powers(transition(kernel, ONE, ONE, dt), n + 1)[:, 0, 0]
    G, Gamma = kernel_of_correlations(half_step_velocity_correlation(xx, dt), xx[:-1], dt, smooth=True)
    fit = fit_exponentials(dt * torch.arange(n, dtype=torch.float64), G, 1)
    assert float(G[-1]) == pytest.approx(10.0, rel=0.02)
    if ratio <= 0.1:
        assert float(fit.kernel.tau) == pytest.approx(0.5, rel=0.01)
        assert float(Gamma[0]) == pytest.approx(20.0, rel=0.1)
    if ratio >= 1:
        assert float(fit.kernel.tau) > 1.2 * 0.5
        assert float(Gamma[0]) < 0.6 * 20


@pytest.mark.parametrize(("lanes", "tolerance"), [(4, 0.85), (64, 0.1)])
def test_ends_of_a_free_energy_are_no_slopes_of_single_excursions(lanes, tolerance):
    """Correlated samples of U = x²: beyond the grid the force stays confining, and is near 2x with more data.

    The correlation time is γ/k = 4: 4 lanes hold 500 independent positions, 64 hold 8000.
    """
    x = simulate(
        KERNEL, Harmonic(2.0), mass=1.0, kT=1.0, step=0.05, samples=20_000, lanes=lanes,
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    at = torch.tensor([-3.0, -2.5, 2.5, 3.0], dtype=torch.float64)
    torch.testing.assert_close(free_energy(x, 1.0).gradient(at), 2 * at, rtol=tolerance, atol=0)

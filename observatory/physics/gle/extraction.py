"""Memory kernels by inverting the correlation equations of time series."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from observatory.numerics.volterra import RULES, Rule
from observatory.physics.gle.estimators import (
    Correlations,
    Trajectories,
    Velocity,
    as_trajectories,
    correlations_of,
)
from observatory.physics.gle.inversion import NEEDS, Equation, equation_residual, invert_correlations
from observatory.physics.gle.potentials import Potential, free_energy
from observatory.physics.gle.result import Band, MemoryKernel


def extract_kernel(
    trajectories: Trajectories,
    dt: float,
    kT: float,
    *,
    n_lags: int | None = None,
    t_max: float | None = None,
    potential: Potential | Literal["free_energy"] = "free_energy",
    velocity: Velocity = "half_step",
    smooth: bool = True,
    equation: Equation = "integrated",
    rule: Rule = "trapezoid",
    velocities: Trajectories | None = None,
    times: Tensor | None = None,
    period: float | None = None,
    bins: int = 100,
    resamples: int = 0,
    generator: torch.Generator | None = None,
) -> MemoryKernel:
    """Memory kernel of a generalised Langevin equation from positions on a regular grid of times.

    By default the equation ∫_0^t G(s) C_vv(t-s) ds = C_xU'(t) - m̂ C_vv(t) is solved by the trapezoid rule,
    with velocities (x_{i+1} - x_i)/Δt and m̂ = C_xU'(0)/C_vv(0): it needs no accelerations, and its error is
    O(Δt²). Direct inversion holds while Δt is below the memory time; above it fit a simulated or an exactly
    discretised model instead (Tepper, Dalton, Netz, J. Chem. Theory Comput. 20, 3061 (2024)).

    Args:
        trajectories: (N,), (P, N), or a list of trajectories of unequal length, which are never joined.
        dt: Δt.
        kT: thermal energy in the energy unit of the data.
        n_lags: number of lags, from 0; default up to `t_max`, else a tenth of the longest trajectory.
        t_max: the longest lag.
        potential: U, or the free energy of the data.
        velocity: estimate of the velocity; "given" takes `velocities`.
        smooth: average G with (¼, ½, ¼): removes the undamped (-1)^i mode of the trapezoid rule.
        equation: "force" needs ⟨v U'⟩ instead of ⟨x U'⟩ and the mass kT/C_vv(0); "first_kind" and
            "second_kind" solve for Γ itself, from accelerations; all three with central velocities. See
            `invert_correlations`.
        rule: of quadrature in an equation of the first kind: "trapezoid", "rectangle" or "midpoint".
        times: time stamps, (N,), to be checked against Δt.
        period: of a periodic coordinate; the positions are unwrapped. Needs an equation other than
            "integrated", since ⟨x U'⟩ has a boundary term.
        bins: of the histogram behind the free energy.
        resamples: of blocks or trajectories for 95 % bands; 0 leaves them out.
        generator: of the resamples.

    Raises:
        ValueError: if an argument or the data do not allow it, with what would.
    """
    x = as_trajectories(trajectories)
    _check(dt, kT, times, equation, rule, period, velocity)
    lags = _lags(x, dt, n_lags, t_max)
    x = x if period is None else [_unwrap(one, period) for one in x]
    named = free_energy(x, kT, bins=bins, period=period) if potential == "free_energy" else potential
    given = None if velocities is None else as_trajectories(velocities)
    kind: Velocity = "central" if equation != "integrated" and velocity == "half_step" else velocity
    products = correlations_of(
        x, dt, named.gradient, lags=lags, velocity=kind, velocities=given, names=NEEDS[equation]
    )
    c = {name: products.mean(name) for name in products.sums}
    if not bool(c["vv"][0] > 0):
        raise ValueError("C_vv(0) is not positive: the positions do not move")
    solve = partial(invert_correlations, dt=dt, kT=kT, equation=equation, rule=rule)
    mass, apparent, G, Gamma = solve(c, smooth=smooth)
    raw = solve(c)[2] if smooth else G
    bands = _bands(products, partial(solve, smooth=smooth), resamples, generator)
    virial = _virial(x, named, kT) if period is None else torch.tensor(torch.nan)
    return MemoryKernel(
        torch.arange(lags, dtype=torch.float64, device=G.device) * dt,
        G,
        raw,
        Gamma,
        mass,
        apparent,
        named,
        dt,
        kT,
        c,
        virial,
        equation_residual(c["vv"], c["xf"], Gamma, apparent, dt)
        if "xf" in c
        else torch.full_like(G, torch.nan),
        *bands,
        reach=(min(float(one.min()) for one in x), max(float(one.max()) for one in x)),
        notes=_notes(virial, apparent, mass, equation),
    )


def _bands(
    products: Correlations,
    solve: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
    resamples: int,
    generator: torch.Generator | None,
) -> tuple[Band | None, Band | None, Band | None]:
    """95 % bands of G, Γ and the mass: all resamples in one batch."""
    if resamples == 0:
        return None, None, None
    n = products.blocks
    drawn = torch.randint(n, (resamples, n), generator=generator)
    weights = torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones_like(drawn, dtype=torch.float64)
    )
    mass, _, G, Gamma = solve({name: products.mean(name, weights.to(s)) for name, s in products.sums.items()})
    return _band(G), _band(Gamma), _band(mass)


def _band(replicates: Tensor) -> Band:
    low, high = replicates.quantile(replicates.new_tensor([0.025, 0.975]), dim=0)
    return Band(low, high, replicates.std(0))


def _virial(x: Sequence[Tensor], potential: Potential, kT: float) -> Tensor:
    mean = sum(float(one.sum()) for one in x) / sum(one.numel() for one in x)
    total = sum(((one - mean) * potential.gradient(one)).sum() for one in x)
    return torch.as_tensor(total) / (sum(one.numel() for one in x) * kT)


def _unwrap(x: Tensor, period: float) -> Tensor:
    steps = x.diff()
    steps = steps - period * torch.round(steps / period)
    return torch.cat([x[:, :1], x[:, :1] + steps.cumsum(-1)], -1)


def _lags(x: Sequence[Tensor], dt: float, n_lags: int | None, t_max: float | None) -> int:
    longest = max(one.shape[-1] for one in x)
    if n_lags is not None and t_max is not None:
        raise ValueError(f"give n_lags or t_max, not both: got {n_lags} and {t_max:g}")
    lags = n_lags if n_lags is not None else (round(t_max / dt) + 1 if t_max is not None else longest // 10)
    shortest, samples = min(one.shape[-1] for one in x), sum(one.numel() for one in x)
    if lags < 3:
        raise ValueError(f"a kernel needs at least 3 lags, got {lags} of Δt = {dt:g}")
    if shortest - 2 <= lags:
        raise ValueError(
            f"{lags} lags cannot be estimated from a trajectory of {shortest} points: ask for fewer lags "
            "or leave short trajectories out"
        )
    if samples < 10 * lags:
        warnings.warn(
            f"{samples} samples for {lags} lags: fewer than 10 per lag leave the kernel mostly noise",
            stacklevel=3,
        )
    return lags


def _check(
    dt: float,
    kT: float,
    times: Tensor | None,
    equation: str,
    rule: str,
    period: float | None,
    velocity: str,
) -> None:
    if not (dt > 0 and math.isfinite(dt)):
        raise ValueError(f"the time step must be positive, got dt={dt!r}")
    if not (kT > 0 and math.isfinite(kT)):
        raise ValueError(f"the thermal energy must be positive, got kT={kT!r}")
    if equation not in NEEDS:
        raise ValueError(f"equation must be one of {', '.join(map(repr, NEEDS))}, got {equation!r}")
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(map(repr, RULES))}, got {rule!r}")
    if velocity not in ("half_step", "central", "given"):
        raise ValueError(f"velocity must be 'half_step', 'central' or 'given', got {velocity!r}")
    if period is not None and equation == "integrated":
        raise ValueError("⟨x U'⟩ of a periodic coordinate has a boundary term: use equation='force'")
    if times is not None:
        _check_times(torch.as_tensor(times).double(), dt)


def _check_times(times: Tensor, dt: float) -> None:
    """Stamps on a grid of the step given: on average to 10⁻⁶, singly to what the digits of a file leave."""
    steps = times.diff()
    mean = float(times[-1] - times[0]) / max(1, len(steps))
    if abs(mean / dt - 1) > 1e-6 or float((steps - dt).abs().max()) > 1e-2 * dt:
        raise ValueError(
            f"the time stamps step by {float(steps.min()):.9g} to {float(steps.max()):.9g}, on average by "
            f"{mean:.9g}, not by dt={dt:.9g}"
        )


def _notes(virial: Tensor, apparent: Tensor, mass: Tensor, equation: str) -> tuple[str, ...]:
    notes = []
    if bool((virial - 1).abs() > 0.05):
        notes.append(f"⟨xU'⟩/kT = {float(virial):.3f} instead of 1: too many bins or too short a series.")
    if equation == "integrated" and abs(float((apparent / mass).log())) > 0.2:
        notes.append(f"The apparent mass {float(apparent):.4g} is not kT/C_vv(0) = {float(mass):.4g}.")
    return tuple(notes)

"""Memory kernels from correlation functions: four forms of one equation, three rules of quadrature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from observatory.numerics.volterra import Rule, convolve, solve_first_kind, solve_second_kind

Equation = Literal["integrated", "force", "first_kind", "second_kind"]
NEEDS = {
    "integrated": ("vv", "xf"),
    "force": ("vv", "vf"),
    "first_kind": ("vv", "va", "vf", "aa", "af"),
    "second_kind": ("vv", "va", "aa", "af"),
}


def kernel_of_correlations(
    vv: Tensor,
    xf: Tensor,
    dt: float,
    *,
    smooth: bool = False,
    mass: Tensor | None = None,
    rule: Rule = "trapezoid",
) -> tuple[Tensor, Tensor]:
    """G and Γ from C_vv and C_xU', both (..., lags), leading dimensions being lanes; differentiable.

    Args:
        mass: the mass in the equation; default C_xU'(0)/C_vv(0). Any other makes G jump by O(1/Δt) at lag 1.
    """
    m = xf[..., 0] / vv[..., 0] if mass is None else mass
    return _of_running_friction(_on_grid(vv, xf - m[..., None] * vv, dt, rule, smooth), dt)


def invert_correlations(
    c: Mapping[str, Tensor],
    dt: float,
    kT: float,
    *,
    equation: Equation = "integrated",
    rule: Rule = "trapezoid",
    smooth: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mass kT/C_vv(0), the mass in the equation, G and Γ from correlations C_ab(t) = ⟨a(0)b(t)⟩, f = U'.

    - "integrated": ∫_0^t G(s) C_vv(t-s) ds = C_xf(t) - m̂ C_vv(t), m̂ = C_xf(0)/C_vv(0);
    - "force": the same from C_vf: ∫_0^t G(s) C_vv(t-s) ds = m[C_vv(0) - C_vv(t)] - ∫_0^t C_vf ds;
    - "first_kind": ∫_0^t Γ(s) C_vv(t-s) ds = -m C_va(t) - C_vf(t), Γ(0) = [m C_aa(0) + C_af(0)]/C_vv(0);
    - "second_kind": C_vv(0) Γ(t) = m C_aa(t) + C_af(t) - ∫_0^t Γ(s) C_va(t-s) ds, by the trapezoid rule.

    The last two are those of earlier programs (Daldrop, Kappler, Brünig, Netz, PNAS 115, 5169 (2018)). From
    sampled accelerations they are less accurate.

    Args:
        c: correlations by the names that the equation needs, each (..., lags).
        dt: Δt.
        kT: thermal energy.
        equation: which.
        rule: of quadrature, in the equations of the first kind.
        smooth: average with (¼, ½, ¼) what an equation of the first kind gives, G or Γ.

    Raises:
        ValueError: if a correlation is missing.
    """
    if missing := [name for name in NEEDS[equation] if name not in c]:
        raise ValueError(f"the equation {equation!r} needs the correlations {', '.join(missing)} as well")
    vv = c["vv"]
    mass = kT / vv[..., 0]
    m = mass[..., None]
    if equation == "integrated":
        G, Gamma = kernel_of_correlations(vv, c["xf"], dt, smooth=smooth, rule=rule)
        return mass, c["xf"][..., 0] / vv[..., 0], G, Gamma
    if equation == "force":
        lost = pad(torch.cumulative_trapezoid(c["vf"], dx=dt), (1, 0))
        G = _on_grid(vv, m * (vv[..., :1] - vv) - lost, dt, rule, smooth)
        return mass, mass, *_of_running_friction(G, dt)
    force = m * c["aa"] + c["af"]
    if equation == "first_kind":
        start = force[..., 0] / vv[..., 0]
        Gamma = _on_grid(vv, -m * c["va"] - c["vf"], dt, rule, smooth, start)
    else:
        Gamma = solve_second_kind(c["va"], force, dt, diagonal=vv[..., 0])
    return mass, mass, pad(torch.cumulative_trapezoid(Gamma, dx=dt), (1, 0)), Gamma


def equation_residual(vv: Tensor, xf: Tensor, Gamma: Tensor, mass: Tensor, dt: float) -> Tensor:
    """m Ċ_vv + C_vU' + ∫Γ C_vv over its largest term, with Γ put back: zero where Γ explains the data.

    The equation is taken once integrated, where noise is smallest: G is the integral of Γ.
    """
    G = pad(torch.cumulative_trapezoid(Gamma, dx=dt), (1, 0))
    friction = dt * (convolve(G, vv) - (G[..., :1] * vv + vv[..., :1] * G) / 2)
    terms = xf - mass[..., None] * vv
    return (friction - terms) / terms.abs().amax(-1, keepdim=True)


def velocity_correlation(G: Tensor, xf: Tensor, mass: Tensor, dt: float) -> Tensor:
    """C_vv of m C_vv(t) + ∫_0^t G(s) C_vv(t-s) ds = C_xU'(t): what a kernel says of the velocities.

    Args:
        G: running friction of the kernel, (..., lags).
        xf: C_xU', (..., lags).
        mass: m, (...).
        dt: Δt.
    """
    return solve_second_kind(G, xf, dt, diagonal=mass)


def _of_running_friction(G: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    return G, torch.gradient(G, spacing=dt, dim=-1)[0]


def _on_grid(
    kernel: Tensor, rhs: Tensor, dt: float, rule: Rule, smooth: bool, initial: Tensor | float = 0.0
) -> Tensor:
    """The solution of an equation of the first kind at the lags."""
    g = solve_first_kind(kernel, rhs, dt, initial=initial, rule=rule)
    if rule == "midpoint":  # element i is g(t_i - Δt/2)
        end = 1.5 * g[..., -1:] - 0.5 * g[..., -2:-1]
        g = torch.cat([g[..., :1], (g[..., 1:-1] + g[..., 2:]) / 2, end], -1)
    return _smoothed(g) if smooth else g


def _smoothed(g: Tensor) -> Tensor:
    inner = g[..., :-2] / 4 + g[..., 1:-1] / 2 + g[..., 2:] / 4
    return torch.cat([g[..., :1], inner, (g[..., -2:-1] + g[..., -1:]) / 2], -1)

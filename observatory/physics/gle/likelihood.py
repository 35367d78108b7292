"""Maximum likelihood of an exactly discretised equation: many starts, profiles, and what is identified."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.numerics.curvature import prepare_forward_mode
from observatory.physics.gle.kernels import ExponentialKernel, kernel_of_logarithms, rising
from observatory.physics.gle.linear import periodogram, spectral_density, transition

ITERATIONS = 60


@dataclass(frozen=True)
class WhittleFit:
    """The best of many starts, and how well each parameter is known."""

    mass: float
    kernel: ExponentialKernel  # times rising, frequencies rising
    log_error: Tensor  # standard errors of (ln m, ln γᵢ, ln τᵢ, ln aⱼ, ln σⱼ, ln ωⱼ), (1 + 2n + 3c,)
    loss: float  # Σ[ln S + I/S], minus the logarithm of the likelihood
    optima: Tensor  # logarithms, in the same order, at which each start ended, (starts, 1 + 2n + 3c)
    losses: Tensor  # there, minus the best, (starts,)
    profile_mass: Tensor  # masses held fixed, (points,)
    profile: Tensor  # loss maximised over the rest, minus the best, (points,)

    @property
    def gamma(self) -> Tensor:
        """γᵢ, (n,)."""
        return self.kernel.gamma

    @property
    def tau(self) -> Tensor:
        """τᵢ, (n,), rising."""
        return self.kernel.tau

    @property
    def mass_range(self) -> tuple[float, float]:
        """Masses within 2 of the best likelihood: 95 %, among the profile and all optima.

        Above the memory time the likelihood is a comb over the mass: an oscillation of the memory that is
        sampled too rarely has aliases.
        """
        close = self.optima[self.losses < 2, 0].exp()
        inside = torch.cat([self.profile_mass[self.profile < 2], close, close.new_tensor([self.mass])])
        return float(inside.min()), float(inside.max())

    @property
    def mass_identified(self) -> bool:
        """Whether the 95 % range spans less than a factor of two."""
        low, high = self.mass_range
        return high < 2 * low


def whittle_fit(
    x: Tensor,
    dt: float,
    kT: float,
    *,
    terms: int = 1,
    cosines: int = 0,
    masses: Tensor | None = None,
    stiffness: float | None = None,
) -> WhittleFit:
    """Mass, frictions and times of a harmonic equation with memory, observed at any step Δt.

    Fisher scoring with damping, all starts at once: (JᵀJ + λ diag)⁻¹ Jᵀ(1 - I/S), J = ∂ln S/∂(ln m, ln γ,
    ln τ). Above Δt ≈ 2τ the likelihood has several optima and is flat in the mass: read `mass_identified`.

    Args:
        x: positions, (N,) or (P, N).
        dt: Δt.
        kT: thermal energy.
        terms: n exponentials.
        cosines: c damped cosines, for memory that swings; each mass is then tried with three frequencies.
        masses: at which starts are made and the profile is taken; default 11 between 1/100 and 3 times kT
            over the mean square of the half-step velocity.
        stiffness: k; default kT over the variance of the data.
    """
    x = x.reshape(-1, x.shape[-1]).double()
    x = x - x.mean()
    k = torch.as_tensor(
        kT / float(x.square().mean()) if stiffness is None else stiffness, dtype=torch.float64
    ).to(x)
    frequency, power = periodogram(x)
    if masses is None:
        apparent = kT / float((x.diff() / dt).square().mean())
        masses = apparent * torch.logspace(-2, 0.5, 11, dtype=torch.float64, device=x.device)
    start = _starts(masses, x, dt, float(k), terms, cosines)

    def log_density(theta: Tensor) -> Tensor:
        kernel = kernel_of_logarithms(theta[1:], terms)
        return (kT / k * spectral_density(transition(kernel, theta[0].exp(), k, dt), frequency)).log()

    free = torch.ones(start.shape[-1], dtype=torch.bool, device=x.device)
    optima, losses, information = _score(log_density, power, start, free)
    best = int(losses.argmin())
    free[0] = False
    held = optima[best].repeat(len(masses), 1)
    held[:, 0] = masses.log()
    profile = _score(log_density, power, torch.cat([held, start]), free)[1].reshape(-1, len(masses)).amin(0)
    lowest = min(float(losses[best]), float(profile.min()))
    error = torch.linalg.pinv(information[best], hermitian=True).diagonal().sqrt()
    theta = optima[best]
    order = torch.cat([torch.zeros(1, dtype=torch.long, device=x.device), 1 + rising(theta[1:], terms)])
    return WhittleFit(
        float(theta[0].exp()),
        kernel_of_logarithms(theta[order][1:], terms),
        error[order],
        lowest,
        optima,
        losses - lowest,
        masses,
        profile - lowest,
    )


def _starts(masses: Tensor, x: Tensor, dt: float, stiffness: float, terms: int, cosines: int) -> Tensor:
    """(starts, 1 + 2n + 3c), all masses for the first set of frequencies, then for the next.

    The friction comes from the overdamped relaxation time, times lie around the step and above (where there
    are cosines, above their range), and each cosine has the friction of an exponential.
    """
    rho = float((x[:, 1:] * x[:, :-1]).mean() / x.square().mean())
    relaxation = dt / max(1e-3, -math.log(min(max(rho, 0.05), 0.999)))
    gamma = torch.full((terms,), math.log(stiffness * relaxation / max(1, terms + cosines))).to(masses)
    first = math.log(dt) + (3 if cosines else 0)
    tau = torch.linspace(first, first + 2 * (terms - 1), terms).to(masses)
    rows = []
    for turn in (0.3, 1.0, 2.5) if cosines else (1.0,):  # radians in Δt: half a turn is the fastest seen
        omega = turn / dt * torch.logspace(0, 0.5 * (cosines - 1), cosines, 2.0).to(masses)
        decay = 2 / omega
        amplitude = stiffness * relaxation / max(1, terms + cosines) * 5 / (2 * decay)  # ωσ = 2
        rows.append(torch.cat([gamma, tau, amplitude.log(), decay.log(), omega.log()]))
    each = torch.stack(rows).repeat_interleave(len(masses), 0)
    return torch.cat([masses.log().repeat(len(rows))[:, None], each], -1)


def _score(
    log_density: Callable[[Tensor], Tensor], power: Tensor, theta: Tensor, free: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Optima (S, p), losses (S,) and Fisher information (S, p, p); parameters that are not free stay."""
    prepare_forward_mode()
    both = torch.func.vmap(torch.func.jacfwd(lambda t: (log_density(t),) * 2, has_aux=True))
    keep = free.to(theta)

    def evaluate(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (S,), gradient (S, p) and information (S, p, p)."""
        J, log_s = both(at)
        ratio = power * (-log_s).exp()
        total = (log_s + ratio).sum(-1)
        J = J.nan_to_num() * keep  # (S, frequencies, p)
        gradient = (J.mT @ (1 - ratio)[..., None])[..., 0]
        return torch.where(total.isfinite(), total, torch.inf), gradient, J.mT @ J

    theta = theta.clone()
    loss, gradient, information = evaluate(theta)
    damping = torch.full_like(loss, 1e-2)
    active = torch.arange(len(theta), device=theta.device)  # lanes that still move
    for _ in range(ITERATIONS):
        diagonal = information[active].diagonal(dim1=-2, dim2=-1)
        damped = information[active] + torch.diag_embed(
            damping[active, None] * diagonal + 1e-9 * diagonal.amax(-1, keepdim=True) + ~free
        )
        step = torch.linalg.solve(damped, gradient[active].nan_to_num()).clamp(-1, 1)
        trial = (theta[active] - step).clamp(-14, 14) * keep + theta[active] * ~free
        tried, slope, curvature = evaluate(trial)
        better = tried < loss[active]
        gain = torch.where(better, loss[active] - tried, torch.inf)
        won = active[better]
        theta[won], loss[won] = trial[better], tried[better]
        gradient[won], information[won] = slope[better], curvature[better]
        damping[active] = torch.where(better, damping[active] / 5, damping[active] * 4).clamp(1e-8, 1e8)
        active = active[(gain > 1e-4) & (damping[active] < 1e4)]
        if len(active) == 0:
            break
    return theta, loss, information

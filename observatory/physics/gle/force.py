"""The random force behind recorded positions, and whether it obeys the fluctuation-dissipation theorem."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.numerics.correlate import correlation
from observatory.physics.gle.potentials import Potential


@dataclass(frozen=True)
class RandomForce:
    """F of positions, its correlation against the kernel, and its distribution."""

    force: Tensor  # (P, N - lags), unit of energy over length
    autocorrelation: Tensor  # ⟨F(0)F(t)⟩/kT, which is Γ(t) in equilibrium, (lags,)
    excess_kurtosis: Tensor  # 0 for Gaussian noise, scalar


def random_force(
    x: Tensor, G: Tensor, dt: float, kT: float, potential: Potential, mass: Tensor
) -> RandomForce:
    """F = m ẍ + U'(x) + ∫Γ(s)ẋ(t-s)ds with the past of `lags` steps, after which the kernel counts as over.

    Velocities are constant between two positions, so that the kernel enters by its exact integrals
    G((j+1)Δt) - G(jΔt), and the acceleration is the second difference.

    Args:
        x: positions, (P, N), N > 2 lags.
        G: running friction at the lags from 0, (lags,).
        dt: Δt.
        kT: thermal energy.
        potential: U.
        mass: m, the apparent mass of the extraction.

    Raises:
        ValueError: if the trajectories are too short.
    """
    lags, n = len(G), x.shape[-1]
    if n <= 2 * lags:
        raise ValueError(f"{n} points are too few for a force with a memory of {lags} and as many lags")
    x = x.double()
    v = x.diff() / dt
    weights = torch.cat([G[1:2], G[1:].diff()])  # of the velocities between t - (j+1)Δt and t - jΔt
    size = 2 ** math.ceil(math.log2(n + lags))
    drag = torch.fft.irfft(torch.fft.rfft(v, n=size) * torch.fft.rfft(weights, n=size), n=size)[..., : n - 1]
    force = mass * v.diff() / dt + potential.gradient(x[..., 1:-1])
    force = (force + drag[..., :-1])[..., lags:]
    c = force - force.mean()
    kurtosis = c.pow(4).mean() / c.square().mean().square() - 3
    return RandomForce(force, correlation(c, lags=lags).mean(0) / kT, kurtosis)

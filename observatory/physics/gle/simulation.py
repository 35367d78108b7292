"""Simulation of the generalised Langevin equation in an embedding with exact Ornstein-Uhlenbeck steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.physics.gle.kernels import ExponentialKernel
from observatory.physics.gle.potentials import Harmonic, Potential

NOISE = 2**21  # random numbers drawn at once


def generator_matrix(kernel: ExponentialKernel, mass: Tensor) -> Tensor:
    """A of dz = A z dt + noise with stationary covariance 1, for the velocity and the auxiliary forces.

    The variables are v/√(kT/m), fᵢ/√(kTγᵢ/τᵢ) and (f, p)/√(kTa)/(1, Ω) of each damped cosine, Ω² = ω² + 1/σ²:
    in these A is an antisymmetric coupling plus the damping, with no singular limit.

    Returns:
        Shape (..., d, d), d = 1 + n + 2c.
    """
    n, c = kernel.gamma.shape[-1], kernel.amplitude.shape[-1]
    lead = torch.broadcast_shapes(kernel.gamma.shape[:-1], mass.shape)
    A = torch.zeros(*lead, 1 + n + 2 * c, 1 + n + 2 * c, dtype=torch.float64, device=kernel.gamma.device)
    force = torch.cat([kernel.gamma / kernel.tau, kernel.amplitude], -1) / mass[..., None]
    coupling = _safe_sqrt(force)  # √(⟨f²⟩/(m²⟨v²⟩))
    damping = [(kernel.instantaneous / mass)[..., None], 1 / kernel.tau]
    damping += [torch.zeros_like(kernel.decay), 2 / kernel.decay]
    rotation = (kernel.frequency**2 + kernel.decay**-2).sqrt()
    f, p = slice(1, 1 + n + c), slice(1 + n + c, None)
    A = A - torch.diag_embed(torch.cat([d.expand(*lead, -1) for d in damping], -1))
    A = A.clone()
    A[..., 0, f] = coupling
    A[..., f, 0] = -coupling
    waves = torch.diag_embed(rotation.expand(*lead, -1))
    A[..., 1 + n : 1 + n + c, p] = waves
    A[..., p, 1 + n : 1 + n + c] = -waves
    return A


def _safe_sqrt(x: Tensor) -> Tensor:
    """√x whose slope at 0 is 0: a term of no strength couples to nothing."""
    return torch.where(x > 0, x, 1.0).sqrt() * (x > 0)


@dataclass(frozen=True)
class Propagator:
    """One step: kick -hU'(x) of the velocity, then y ← M y + R ξ of y = (x, z), the rest of the step.

    Between two evaluations of the force lie half a drift, the exact Ornstein-Uhlenbeck motion of (v, f) and
    half a drift, all linear. For a harmonic U the sampled ⟨x²⟩ is exact at every stable step.
    """

    M: Tensor  # (..., d+1, d+1)
    R: Tensor  # (..., d+1, d)
    kick: Tensor  # (...): change of v/√(kT/m) in a whole kick per unit of -U'
    speed: Tensor  # (...), √(kT/m)


def propagator(kernel: ExponentialKernel, mass: Tensor | float, kT: float, step: float) -> Propagator:
    """Matrices of a step h; leading dimensions are parameter sets. No limit on h comes from the τᵢ."""
    m = torch.as_tensor(mass, dtype=torch.float64, device=kernel.gamma.device)
    E = torch.linalg.matrix_exp(generator_matrix(kernel, m) * step)
    d = E.shape[-1]
    eye = torch.eye(d, dtype=E.dtype, device=E.device)
    L = torch.linalg.cholesky(eye * (1 + 1e-14) - E @ E.mT)
    speed = (kT / m).sqrt().expand(E.shape[:-2])
    drift = torch.eye(d + 1, dtype=E.dtype, device=E.device).repeat(*E.shape[:-2], 1, 1)
    drift[..., 0, 1] = speed * step / 2
    lifted = torch.eye(d + 1, dtype=E.dtype, device=E.device).repeat(*E.shape[:-2], 1, 1)
    lifted[..., 1:, 1:] = E
    noise = torch.nn.functional.pad(L, (0, 0, 1, 0))
    return Propagator(
        drift @ lifted @ drift, drift @ noise, step / (m * kT).sqrt().expand(E.shape[:-2]), speed
    )


def simulate(
    kernel: ExponentialKernel,
    potential: Potential,
    *,
    mass: Tensor | float,
    kT: float,
    step: float,
    samples: int,
    lanes: int,
    stride: int = 1,
    burn_in: int = 0,
    start: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | None = None,
    common_noise: bool = False,
) -> Tensor:
    """Positions of an ensemble in equilibrium, every `stride` steps.

    Args:
        kernel: Γ; its leading dimensions S and those of `mass` are parameter sets, simulated together.
        potential: U.
        mass: m, (S).
        kT: thermal energy.
        step: h of the integrator.
        samples: T, stored positions of each lane, the first `stride` steps after `burn_in`.
        lanes: P, independent particles of each set.
        stride: steps between stored positions.
        burn_in: steps before the first one.
        start: initial positions, broadcast to (S, P); default drawn from e^{-U/kT}.
        dtype: of the state; float32 is enough, correlations are taken in float64.
        generator: of the noise, on the device of the kernel.
        common_noise: the same random numbers for every parameter set: differences of sets are then smooth.

    Returns:
        Shape (S, P, T), of `dtype`.
    """
    blocks = trajectory_blocks(
        kernel,
        potential,
        mass=mass,
        kT=kT,
        step=step,
        lanes=lanes,
        stride=stride,
        burn_in=burn_in,
        start=start,
        dtype=dtype,
        generator=generator,
        common_noise=common_noise,
        most=min(4096, burn_in + samples * stride),
    )
    found, have = [], 0
    while have < samples:
        found.append(next(blocks))
        have += found[-1].shape[0]
    return torch.cat(found)[:samples].movedim(0, -1)


def trajectory_blocks(
    kernel: ExponentialKernel,
    potential: Potential,
    *,
    mass: Tensor | float,
    kT: float,
    step: float,
    lanes: int,
    stride: int = 1,
    burn_in: int = 0,
    start: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | None = None,
    common_noise: bool = False,
    most: int = 4096,
) -> Iterator[Tensor]:
    """An endless trajectory in blocks (T, S, P) of at most `most` steps, arguments as in `simulate`."""
    p = propagator(kernel, mass, kT, step)
    sets, device = p.M.shape[:-2], p.M.device
    M, R = (t.reshape(-1, *t.shape[-2:]).to(dtype) for t in (p.M, p.R))
    kick = -p.kick.reshape(-1, 1).to(dtype)
    count, d = len(M), R.shape[-1]
    drawn = 1 if common_noise else count
    y = torch.randn(drawn, d + 1, lanes, dtype=dtype, device=device, generator=generator).repeat(
        count // drawn, 1, 1
    )
    if start is None:
        y[:, 0] = _equilibrium(potential, kT, (drawn, lanes), generator, device).to(dtype)
    else:
        y[:, 0] = start.to(y).expand(*sets, lanes).reshape(count, lanes)
    advance = _single if count == 1 else _together
    per_block = max(1, min(NOISE // (count * (d + 1) * lanes), most) // stride) * stride
    y[:, 1] += kick / 2 * potential.gradient(y[:, 0])
    age = -burn_in
    while True:
        noise = torch.randn(per_block, drawn, d, lanes, dtype=dtype, device=device, generator=generator)
        xs = torch.empty(per_block, count, lanes, dtype=dtype, device=device)
        y = advance(y, R @ noise, M, kick, potential, xs)
        first = max(math.ceil(max(1, age + 1) / stride), 1) * stride  # number of the next stored step
        kept = xs[first - age - 1 :: stride]
        age += per_block
        if len(kept):
            yield kept.reshape(len(kept), *sets, lanes)


def _single(y: Tensor, noise: Tensor, M: Tensor, kick: Tensor, potential: Potential, xs: Tensor) -> Tensor:
    """All steps of one parameter set: two-dimensional products are the fastest."""
    matrix, factor, both = M[0], float(kick), (y[0], torch.empty_like(y[0]))
    (y, x, v), (other, other_x, other_v) = ((b, b[0], b[1]) for b in both)
    for eta, row in zip(noise[:, 0].unbind(), xs[:, 0].unbind(), strict=True):
        torch.addmm(eta, matrix, y, out=other)
        y, x, v, other, other_x, other_v = other, other_x, other_v, y, x, v
        row.copy_(x)
        v.add_(potential.gradient(row), alpha=factor)
    return y[None]


def _together(y: Tensor, noise: Tensor, M: Tensor, kick: Tensor, potential: Potential, xs: Tensor) -> Tensor:
    other = torch.empty_like(y)
    for eta, row in zip(noise.unbind(), xs.unbind(), strict=True):
        torch.baddbmm(eta.expand_as(y), M, y, out=other)
        y, other = other, y
        row.copy_(y[:, 0])
        y[:, 1].addcmul_(potential.gradient(row), kick)
    return y


def _equilibrium(
    potential: Potential,
    kT: float,
    shape: tuple[int, int],
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """Positions from e^{-U/kT}, by its cumulative sum on a grid that reaches 40 kT above the minimum."""
    if isinstance(potential, Harmonic):
        spread = math.sqrt(kT / potential.stiffness)
        return spread * torch.randn(*shape, dtype=torch.float64, device=device, generator=generator)
    x = _support(potential, kT, device)
    if x is None:
        return torch.zeros(shape, dtype=torch.float64, device=device)
    weight = torch.exp((potential.energy(x).min() - potential.energy(x)) / kT)
    cumulative = torch.cumulative_trapezoid(weight, x)
    u = torch.rand(*shape, dtype=torch.float64, device=device, generator=generator) * cumulative[-1]
    index = torch.searchsorted(cumulative, u).clamp_max(len(x) - 2)
    before = torch.where(index > 0, cumulative[(index - 1).clamp_min(0)], 0.0)
    return x[index] + (u - before) / (cumulative[index] - before) * (x[index + 1] - x[index])


def _support(potential: Potential, kT: float, device: torch.device) -> Tensor | None:
    """A grid over the places that are populated; None for a potential that does not confine."""
    width = torch.logspace(-6, 9, 400, dtype=torch.float64, device=device)
    wide = torch.cat([-width.flip(0), width.new_zeros(1), width])
    energy = potential.energy(wide)
    inside = (energy < energy.min() + 40 * kT).nonzero()[:, 0]
    low, high = int(inside.min()), int(inside.max())
    if low == 0 or high == len(wide) - 1:
        return None
    return torch.linspace(
        float(wide[low - 1]), float(wide[high + 1]), 20_001, dtype=torch.float64, device=device
    )

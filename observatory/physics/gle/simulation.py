"""Simulation of the generalised Langevin equation in an embedding with exact Ornstein-Uhlenbeck steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from observatory.physics.gle.embedding import propagator
from observatory.physics.gle.equilibrium import positions_in_equilibrium
from observatory.physics.gle.kernels import ExponentialKernel
from observatory.physics.gle.potentials import FreeEnergy, Potential
from observatory.physics.gle.stepping import choose

NOISE = 2**21  # random numbers drawn at once


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
    compiled: bool = False,
    most: int = 4096,
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
        compiled: 16 steps as one compiled kernel, five times faster at a hundred lanes, after some 15 s of
            compilation for each shape; the random numbers are the same.
        most: steps that are taken with one draw of noise.

    Returns:
        Shape (S, P, T), of `dtype`. If the kernel or the mass require gradients, these flow through at most
        `most` steps back.
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
        compiled=compiled,
        most=min(most, burn_in + samples * stride),
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
    compiled: bool = False,
    most: int = 4096,
) -> Iterator[Tensor]:
    """An endless trajectory in blocks (T, S, P) of at most `most` steps, arguments as in `simulate`."""
    p = propagator(kernel, mass, kT, step)
    sets, device = p.M.shape[:-2], p.M.device
    M, R = (t.reshape(-1, *t.shape[-2:]).to(dtype) for t in (p.M, p.R))
    kick = -p.kick.reshape(-1, 1).to(dtype)
    count, d = len(M), R.shape[-1]
    drawn = 1 if common_noise else count
    learns = M.requires_grad and torch.is_grad_enabled()  # else a trainable U asks for no gradients either
    y = torch.randn(drawn, d + 1, lanes, dtype=dtype, device=device, generator=generator).repeat(
        count // drawn, 1, 1
    )
    if start is None:
        with torch.set_grad_enabled(learns):
            y[:, 0] = positions_in_equilibrium(potential, kT, (drawn, lanes), generator, device).to(dtype)
    else:
        y[:, 0] = start.to(y).expand(*sets, lanes).reshape(count, lanes)
    if isinstance(potential, FreeEnergy):
        potential = potential.to(dtype, device)
    advance = choose(count, compiled=compiled, differentiable=learns)
    per_block = max(1, min(NOISE // (count * (d + 1) * lanes), most) // stride) * stride
    with torch.set_grad_enabled(learns):
        kicked = y[:, 1] + kick / 2 * potential.gradient(y[:, 0])
        y = torch.cat([y[:, :1], kicked[:, None], y[:, 2:]], 1)
    age = -burn_in
    while True:
        noise = torch.randn(per_block, drawn, d, lanes, dtype=dtype, device=device, generator=generator)
        xs = torch.empty(per_block, count, lanes, dtype=dtype, device=device)
        with torch.set_grad_enabled(learns):
            y = advance(y, noise, M, R, kick, potential, xs).detach()
        first = max(math.ceil(max(1, age + 1) / stride), 1) * stride  # number of the next stored step
        kept = xs[first - age - 1 :: stride]
        age += per_block
        if len(kept):
            yield kept.reshape(len(kept), *sets, lanes)

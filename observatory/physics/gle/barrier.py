"""Crossing a barrier with memory: first-passage times simulated, by quadrature, and by Grote and Hynes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from observatory.physics.gle.kernels import ExponentialKernel
from observatory.physics.gle.particle import Particle
from observatory.physics.gle.potentials import DoubleWell, Potential
from observatory.physics.gle.simulation import trajectory_blocks


def overdamped_passage_time(
    potential: Potential, friction: float, kT: float, *, start: float, end: float, points: int = 20_001
) -> float:
    """τ = (γ/kT) ∫_start^end dx e^{U(x)/kT} ∫_{-∞}^x dy e^{-U(y)/kT}: no mass, no memory, start < end.

    (Zwanzig, Nonequilibrium Statistical Mechanics, 2001, §4.)
    """
    low = start - 3 * (end - start)  # a quarter of the grid is the way, so that `start` is a point of it
    y = torch.linspace(low, end, 4 * (points - 1) + 1, dtype=torch.float64)
    below = torch.exp(-potential.energy(y) / kT)
    inner = torch.nn.functional.pad(torch.cumulative_trapezoid(below, y), (1, 0))
    on = slice(3 * (points - 1), None)
    return float(friction / kT * torch.trapezoid((inner / below)[on], y[on]))


def grote_hynes_rate(kernel: ExponentialKernel, well: DoubleWell, *, mass: float, kT: float) -> float:
    """k = (ω₀/2π)(λ/ω_b) e^{-U₀/kT} with λ² + λΓ̃(λ)/m = ω_b², of leaving one well over a high barrier.

    (Grote, Hynes, J. Chem. Phys. 73, 2715 (1980).)
    """
    top = 4 * well.barrier / (mass * well.width**2)  # ω_b²; ω₀² is twice that
    low, high = 0.0, math.sqrt(top)
    for _ in range(200):  # the left side rises in λ
        middle = (low + high) / 2
        s = torch.tensor([middle], dtype=torch.float64)
        friction = float(kernel.laplace(s)[0])
        low, high = (middle, high) if middle**2 + middle * friction / mass < top else (low, middle)
    rate = math.sqrt(2 * top) / (2 * math.pi) * low / math.sqrt(top)
    return rate * math.exp(-well.barrier / kT)


@dataclass(frozen=True)
class PassageTime:
    """Mean time from one minimum to the other."""

    mean: float
    error: float  # standard error, from the scatter between lanes
    crossings: int


def passage_time(
    particle: Particle,
    *,
    step: float,
    duration: float,
    lanes: int = 1024,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> PassageTime:
    """Simulated mean time from first reaching one of ±L to first reaching the other, in equilibrium.

    Its inverse is the rate at which the particle changes wells. A particle that keeps its energy does so
    many times in a row: for long memory this time stays near that of transition-state theory, while
    `first_passage_time`, of particles that start as the bath has them, grows as the memory squared.

    Successive first arrivals alternate between the minima: in equilibrium their number in a window is, on
    average, the window over the mean time, whatever the window. (Completed intervals alone would be too short
    on average: long ones do not fit in.) The first tenth of `duration` is left out, until each lane has seen
    a minimum.

    Args:
        particle: in a `DoubleWell`.
        step: h; positions are looked at after each.
        duration: of each lane; a tenth of it must exceed the relaxation within a well.
        lanes: independent particles.

    Raises:
        ValueError: if no particle crossed, or there are no two wells.
    """
    width = _well(particle).width
    blocks = _blocks(particle, step=step, lanes=lanes, dtype=dtype, generator=generator, most=1024)
    side = torch.zeros(lanes, dtype=torch.int8, device=particle.kernel.gamma.device)
    arrivals = torch.zeros(lanes, dtype=torch.float64, device=side.device)
    done, begin, total = 0, round(0.1 * duration / step), round(duration / step)
    while done < total:
        x = next(blocks)[: total - done]
        mark = (x >= width).to(torch.int8) - (x <= -width).to(torch.int8)  # (T, lanes)
        mark = _carried(torch.cat([side[None], mark]))
        arrived = (mark[1:] != mark[:-1]) & (mark[:-1] != 0)
        arrivals += arrived[max(0, begin - done) :].sum(0)
        side, done = mark[-1], done + len(x)
    crossings, window = arrivals.sum(), (total - begin) * step
    if not bool(crossings > 0):
        raise ValueError(f"no particle crossed the barrier within {duration:g}: simulate longer")
    mean = lanes * window / float(crossings)
    error = mean * float(arrivals.std() / arrivals.mean()) / math.sqrt(lanes)
    return PassageTime(mean, error, int(crossings))


def first_passage_time(
    particle: Particle,
    *,
    step: float,
    lanes: int = 512,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    longest: float = math.inf,
) -> PassageTime:
    """Simulated mean time from -L, velocity and random force in equilibrium, to first reaching L.

    All particles are followed to the end: leaving out the slowest would shorten the mean. (Kappler, Daldrop,
    Brünig, Boehle, Netz, J. Chem. Phys. 148, 014903 (2018).)

    Args:
        particle: in a `DoubleWell`.
        step: h; positions are looked at after each.
        lanes: independent particles.
        longest: when to give up.

    Raises:
        ValueError: if some have not arrived by then, or there are no two wells.
    """
    width = _well(particle).width
    blocks = _blocks(
        particle,
        step=step,
        lanes=lanes,
        dtype=dtype,
        generator=generator,
        most=4096,
        start=torch.tensor(-width),
    )
    arrival = torch.full((lanes,), math.inf, dtype=torch.float64, device=particle.kernel.gamma.device)
    done = 0
    while bool(arrival.isinf().any()):
        if done * step > longest:
            late = int(arrival.isinf().sum())
            raise ValueError(f"{late} of {lanes} particles have not crossed within {longest:g}: wait longer")
        arrived = next(blocks) >= width  # (T, lanes)
        first = (done + 1 + arrived.int().argmax(0)) * step
        arrival = torch.where(arrived.any(0), torch.minimum(arrival, first.double()), arrival)
        done += len(arrived)
    return PassageTime(float(arrival.mean()), float(arrival.std()) / math.sqrt(lanes), lanes)


def _well(particle: Particle) -> DoubleWell:
    if not isinstance(particle.potential, DoubleWell):
        raise ValueError(
            f"passages lead from well to well of a DoubleWell, not of {type(particle.potential).__name__}"
        )
    return particle.potential


def _blocks(particle: Particle, **options: Any) -> Iterator[Tensor]:
    p = particle
    return trajectory_blocks(p.kernel, p.potential, mass=p.mass, kT=p.kT, **options)


def _carried(mark: Tensor) -> Tensor:
    """Each 0 replaced by the last mark before it, along the first axis."""
    index = torch.arange(len(mark), device=mark.device)[:, None].expand_as(mark)
    latest = torch.where(mark != 0, index, 0).cummax(0).values
    return mark.gather(0, latest)

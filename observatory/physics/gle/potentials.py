"""Free energies: closed forms, and splines through a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

GRID = 4001  # points of a tabulated force
TAIL = 2e-3  # share of the samples at either end that no slope is taken from


class Potential(Protocol):
    """U(x) and its slope, elementwise on tensors of any shape."""

    def energy(self, x: Tensor) -> Tensor:
        """U(x)."""

    def gradient(self, x: Tensor) -> Tensor:
        """U'(x)."""


@dataclass(frozen=True)
class Flat:
    """U = 0."""

    def energy(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def gradient(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@dataclass(frozen=True)
class Harmonic:
    """U = k x²/2."""

    stiffness: float = 1.0  # k, energy over length²

    def energy(self, x: Tensor) -> Tensor:
        return self.stiffness / 2 * x * x

    def gradient(self, x: Tensor) -> Tensor:
        return self.stiffness * x


@dataclass(frozen=True)
class DoubleWell:
    """U = U₀((x/L)² - 1)²: minima at ±L, a barrier of U₀ between them."""

    barrier: float = 3.0  # U₀, energy
    width: float = 1.0  # L, length

    def energy(self, x: Tensor) -> Tensor:
        return self.barrier * ((x / self.width) ** 2 - 1) ** 2

    def gradient(self, x: Tensor) -> Tensor:
        slope = 4 * self.barrier / self.width**2
        return torch.addcmul(-slope * x, x, x * x, value=slope / self.width**2)  # three passes


@dataclass(frozen=True)
class FreeEnergy:
    """U = -kT ln p(x) up to a constant, on a regular grid; outside it U' goes on linearly."""

    x: Tensor  # grid, (points,), unit of length
    U: Tensor  # (points,), unit of kT; 0 at its minimum
    slope: Tensor  # U', (points,)
    knots: Tensor  # centres of the bins, (bins,)
    counts: Tensor  # samples in each bin, (bins,)
    period: float | None = None  # of a periodic coordinate

    def gradient(self, x: Tensor) -> Tensor:
        index, fraction = self._place(x)
        inside = fraction.clamp(0, 1)
        left, right = self.slope.to(x)[index], self.slope.to(x)[index + 1]
        low, high = self._bend
        step = self._grid[1]
        beyond = (fraction - inside) * step  # zero inside the grid
        return left + inside * (right - left) + beyond * torch.where(fraction > 1, high, low)

    def energy(self, x: Tensor) -> Tensor:
        index, fraction = self._place(x)
        inside = fraction.clamp(0, 1)
        left, right = self.U.to(x)[index], self.U.to(x)[index + 1]
        edge = torch.where(fraction > 1, self.slope.to(x)[index + 1], self.slope.to(x)[index])
        beyond = (fraction - inside) * self._grid[1]  # zero inside the grid
        low, high = self._bend
        bend = torch.where(fraction > 1, high, low)
        return left + inside * (right - left) + beyond * edge + beyond.square() / 2 * bend

    def to(self, dtype: torch.dtype, device: torch.device) -> FreeEnergy:
        """The same table in another precision, so that a simulation need not convert it at every step."""
        x, U, slope = (table.to(device, dtype) for table in (self.x, self.U, self.slope))
        return replace(self, x=x, U=U, slope=slope)

    @cached_property
    def _grid(self) -> tuple[float, float]:
        return float(self.x[0]), float(self.x[-1] - self.x[0]) / (len(self.x) - 1)

    @cached_property
    def _bend(self) -> tuple[float, float]:
        """U'' with which U' goes on outside: its mean over the outer quarters, never negative."""
        outer = max(1, len(self.x) // 4)
        width = outer * self._grid[1]
        below, above = self.slope[outer] - self.slope[0], self.slope[-1] - self.slope[-1 - outer]
        return max(0.0, float(below) / width), max(0.0, float(above) / width)

    def support(self, device: torch.device) -> Tensor:
        """A grid over one period, or over the sampled range and half as much beyond each end."""
        low, high = float(self.x[0]), float(self.x[-1])
        margin = 0.0 if self.period is not None else (high - low) / 2
        return torch.linspace(low - margin, high + margin, 20_001, dtype=torch.float64, device=device)

    def _place(self, x: Tensor) -> tuple[Tensor, Tensor]:
        start, step = self._grid
        if self.period is not None:
            x = start + torch.remainder(x - start, self.period)
        place = (x - start) / step
        index = place.clamp(0, len(self.x) - 2).long()
        return index, place - index


def free_energy(
    samples: Tensor | Sequence[Tensor],
    kT: float,
    *,
    bins: int = 100,
    knots: int = 12,
    period: float | None = None,
) -> FreeEnergy:
    """U(x) = -kT ln p(x): a cubic spline through the logarithm of a histogram, weighted by its counts.

    The spline has far fewer coefficients than the histogram bins, so that its slope does not follow the noise
    of single bins, which would enter correlations of the force coherently. The outermost 0.2 % of the samples
    at either end lie outside of the grid: a few excursions are no measurement of a slope.

    Args:
        samples: positions of any shape, or several tensors.
        kT: thermal energy.
        bins: of the histogram.
        knots: intervals of the spline, at most.
        period: of a periodic coordinate.

    Raises:
        ValueError: if bins between populated ones are empty.
    """
    from scipy.interpolate import make_lsq_spline

    flat = torch.cat([s.reshape(-1) for s in ([samples] if isinstance(samples, Tensor) else samples)])
    flat = flat.double()
    if period is not None:
        low, high = 0.0, period
        flat = torch.remainder(flat, period)
    else:
        low, high = float(flat.min()), float(flat.max())
    if not high > low:
        raise ValueError(f"all positions equal {low:g}: there is no histogram to take the logarithm of")
    index = ((flat - low) * (bins / (high - low))).long().clamp_(0, bins - 1)
    counts = torch.bincount(index, minlength=bins).cpu()
    edges = np.linspace(low, high, bins + 1)
    first, last = (0, bins) if period is not None else _sampled(counts, edges)
    if period is not None and bool((counts == 0).any()):
        raise ValueError(f"{int((counts == 0).sum())} of {bins} bins of the period are empty: use fewer bins")
    centres = (edges[:-1] + edges[1:])[first:last] / 2
    kept = counts[first:last].double()
    y, weight = -kT * np.log(kept.numpy()), np.sqrt(kept.numpy())
    if period is not None:
        spline: Any = _periodic_spline(centres, y, weight, period, min(knots, max(4, bins // 4)))
        grid = np.linspace(0.0, period, GRID)
    else:
        # the outermost pieces reach to where 1 % of the samples lie beyond: sparse bins alone bend no piece
        low, high = np.interp([0.01, 0.99], np.cumsum(kept.numpy()) / float(kept.sum()), centres)
        pieces = min(knots, max(2, len(centres) // 4)) * (high - low) / (centres[-1] - centres[0])
        inner = np.linspace(low, high, max(1, round(pieces)))
        ends = [np.repeat(centres[k], 4) for k in (0, -1)]
        spline = make_lsq_spline(centres, y, np.concatenate([ends[0], inner, ends[1]]), k=3, w=weight)
        grid = np.linspace(centres[0], centres[-1], GRID)
    U, slope = spline(grid), spline(grid, 1)
    made = (torch.from_numpy(np.ascontiguousarray(a)).to(flat.device) for a in (grid, U - U.min(), slope))
    x, energy, gradient = made
    return FreeEnergy(x, energy, gradient, torch.from_numpy(centres), kept, period)


def _periodic_spline(x: np.ndarray, y: np.ndarray, weight: np.ndarray, period: float, pieces: int) -> Any:
    """The cubic spline of equal pieces through values over one period from 0, by weighted least squares."""
    from scipy.interpolate import BSpline

    knots = period / pieces * np.arange(-3, pieces + 4)
    design = BSpline.design_matrix(x, knots, 3).toarray()  # the last three are the first three, a period on
    design[:, :3] += design[:, pieces:]
    c = np.linalg.lstsq(design[:, :pieces] * weight[:, None], y * weight, rcond=None)[0]
    return BSpline(knots, np.concatenate([c, c[:3]]), 3)


def _sampled(counts: Tensor, edges: np.ndarray) -> tuple[int, int]:
    """The bins between which all but the sparse ends of the samples lie.

    Raises:
        ValueError: if one of them is empty, or there are too few.
    """
    share = counts.cumsum(0) / counts.sum()
    first, last = int((share < TAIL).sum()), int((share < 1 - TAIL).sum()) + 1
    empty = first + (counts[first:last] == 0).nonzero()[:, 0]
    if len(empty) or last - first < 5:
        gaps = ", ".join(f"[{edges[k]:.4g}, {edges[k + 1]:.4g})" for k in empty[:3].tolist())
        raise ValueError(
            f"{len(empty)} of {last - first} bins within the range of the positions are empty"
            f"{f', such as {gaps}' if gaps else ''}: use fewer bins, more data, or name the potential"
        )
    return first, last

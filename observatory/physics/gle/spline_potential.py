"""A free energy whose shape is trained: a cubic spline with its coefficients for parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from observatory.physics.gle.potentials import Potential

POINTS = 2001  # of the quadrature of the partition function
# B-spline j of four at a place 0 ≤ f ≤ 1 within an interval: coefficients of 1, f, f², f³, times 6
_PIECES = ((1, -3, 3, -1), (4, 0, -6, 3), (1, 3, 3, -3), (0, 0, 0, 1))


class SplinePotential(nn.Module):
    """U(x) = Σ_j c_j B_j(x) with cubic B-splines on equal intervals between `low` and `high`.

    Outside U' goes on linearly, with its mean slope over the outer quarter if that confines.

    Args:
        low: left end.
        high: right end.
        coefficients: c_j, one for each interval and three more, unit of energy.

    Raises:
        ValueError: if there are fewer than five coefficients, or the ends are not in order.
    """

    def __init__(self, low: float, high: float, coefficients: Sequence[float]) -> None:
        super().__init__()
        if len(coefficients) < 5 or not low < high:
            raise ValueError(
                f"a spline needs low < high and at least 5 coefficients, got {low:g}, {high:g} and "
                f"{len(coefficients)}"
            )
        self.low, self.high = float(low), float(high)
        self.coefficients = nn.Parameter(torch.tensor(coefficients, dtype=torch.float64))

    @classmethod
    def through(cls, potential: Potential, low: float, high: float, intervals: int = 12) -> SplinePotential:
        """The spline nearest to another potential between two places, its minimum at 0."""
        x = torch.linspace(low, high, 40 * intervals + 1, dtype=torch.float64)
        made = cls(low, high, [0.0] * (intervals + 3))
        index, powers = made._place(x)
        design = torch.zeros(len(x), intervals + 3, dtype=torch.float64)
        for j, weight in enumerate(_basis(powers)):
            design.scatter_add_(1, (index + j)[:, None], weight[:, None])
        U = potential.energy(x)
        found = torch.linalg.lstsq(design, (U - U.min())[:, None]).solution[:, 0]
        return cls(low, high, found.tolist())

    @property
    def width(self) -> float:
        """Of an interval."""
        return (self.high - self.low) / (len(self.coefficients) - 3)

    def energy(self, x: Tensor) -> Tensor:
        inside = x.clamp(self.low, self.high)
        beyond = x - inside
        slope = self._spline(inside, 1)
        bend = torch.where(beyond > 0, *self._bends(x))
        return self._spline(inside, 0) + beyond * slope + beyond.square() / 2 * bend

    def gradient(self, x: Tensor) -> Tensor:
        inside = x.clamp(self.low, self.high)
        beyond = x - inside
        return self._spline(inside, 1) + beyond * torch.where(beyond > 0, *self._bends(x))

    def surprise(self, x: Tensor, kT: float) -> Tensor:
        """⟨U(x)⟩/kT + ln ∫e^{-U/kT}: minus the mean log-likelihood of positions in equilibrium, scalar."""
        margin = (self.high - self.low) / 2
        grid = torch.linspace(self.low - margin, self.high + margin, POINTS).to(self.coefficients)
        weight = torch.logsumexp(-self.energy(grid) / kT, 0) + torch.log(grid[1] - grid[0])
        return self.energy(x).mean() / kT + weight

    def _spline(self, x: Tensor, order: int) -> Tensor:
        """U or U' between the ends."""
        index, powers = self._place(x)
        c = self.coefficients.to(x)
        weights = _basis(powers) if order == 0 else [w / self.width for w in _slopes(powers)]
        return sum((w * c[index + j] for j, w in enumerate(weights)), torch.zeros_like(x))

    def _place(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Interval, and the powers 0 to 3 of the place within it, (4, ...)."""
        place = (x - self.low) / self.width
        index = place.detach().clamp(0, len(self.coefficients) - 4).long()
        index = index.clamp_max(len(self.coefficients) - 4)
        return index, torch.stack([(place - index) ** k for k in range(4)])

    def _bends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """U'' to the right and to the left of the ends."""
        quarter = (self.high - self.low) / 4
        ends = x.new_tensor([self.low, self.low + quarter, self.high - quarter, self.high])
        slopes = self._spline(ends, 1)
        left, right = (slopes[1] - slopes[0]) / quarter, (slopes[3] - slopes[2]) / quarter
        return right.clamp_min(0), left.clamp_min(0)


def _basis(powers: Tensor) -> list[Tensor]:
    """The four splines at a place."""
    return [sum(a * p for a, p in zip(piece, powers, strict=True)) / 6 for piece in _PIECES]


def _slopes(powers: Tensor) -> list[Tensor]:
    """Their derivatives by the place."""
    lower = pad(powers[:-1].movedim(0, -1), (1, 0)).movedim(-1, 0)  # d f^k/df = k f^{k-1}
    return [
        sum(k * a * p for k, (a, p) in enumerate(zip(piece, lower, strict=True))) / 6 for piece in _PIECES
    ]

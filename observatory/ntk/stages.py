"""Stages of learning: where a collective variable falls, rests and rises in the logarithm of time.

A falling entropy of the kernel is called information compression, a rising one structure formation (Tovey et
al. 2024, arXiv:2410.07451). For other series read falling and rising.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind = Literal["compression", "plateau", "structure formation"]
Floats = NDArray[np.float64]

SWEEPS = 20  # over the knots; two or three are enough in practice
NEGLIGIBLE = 0.05  # of the mean slope of a series that went from its lowest to its highest value at a stretch


@dataclass(frozen=True)
class Stage:
    """A stretch of a run in which the series falls, rests or rises."""

    kind: Kind
    start: float  # step
    stop: float  # step
    change: float  # of the series from start to stop, unit of the series
    change_error: float  # standard error of `change`, the knots taken as known
    slope: float  # change per unit of ln(1 + step)
    slope_error: float  # standard error


@dataclass(frozen=True)
class Stages:
    """A series y(τ), τ = ln(1 + step), as a continuous chain of straight pieces."""

    stages: tuple[Stage, ...]  # neighbours of one kind merged
    overall: Stage  # from the first to the last record
    knots: Floats  # steps where the pieces meet, first and last record included, (K + 2,)
    values: Floats  # of the chain at the knots, (K + 2,)
    noise: float  # standard deviation of the records about the chain

    def __iter__(self) -> Any:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of the stages in turn."""
        return tuple(stage.kind for stage in self.stages)

    @property
    def turning_points(self) -> list[tuple[float, float]]:
        """(from, to): intervals of steps in which a fall turns into a rise or a rise into a fall.

        An interval is a resting stretch between the two, or the two pieces that meet at the knot.
        """
        moving = [stage for stage in self.stages if stage.kind != "plateau"]
        return [(a.stop, b.start) for a, b in pairwise(moving) if a.kind != b.kind]


def find_stages(
    steps: ArrayLike | Sequence[float],
    values: ArrayLike | Sequence[float],
    *,
    noise: float = 0.0,
    max_knots: int = 10,
    minimum: int = 3,
    significance: float = 2.0,
) -> Stages:
    """Segment a series by a continuous, piecewise linear fit in τ = ln(1 + step).

    Knots lie at records. Their places are found by dynamic programming over the squared residuals of straight
    pieces, then moved one by one while the continuous fit improves; their number K minimises
    BIC = n ln(RSS/n) + (2K + 2) ln n. A piece whose slope differs from zero by fewer than `significance`
    standard errors is a plateau, unless it differs by more than one and a neighbour moves the same way; so is
    a piece with less than a twentieth of the slope that the whole range of the series in the whole time
    makes. Neighbours of one kind are merged. Cost O(n²K).

    Args:
        steps: optimizer steps ≥ 0 that increase, (n,); any unit of time if the first ones are of order one.
        values: the series, (n,); records that are not finite are left out.
        noise: σ of the values where it is known, from a bootstrap over the probe say: standard errors are not
            taken smaller than it gives. Otherwise the scatter about the chain is used alone.
        max_knots: largest K.
        minimum: least number of records in a piece.
        significance: standard errors.

    Raises:
        ValueError: if there are fewer finite records than two pieces need, or steps do not increase.
    """
    t, tau, y = _checked(steps, values, minimum)
    sums = _Sums(tau, y, minimum)
    fits = _fits(sums, min(max_knots, (len(y) - 1) // minimum - 1))
    floor = max(np.finfo(float).eps * len(y) * sums.running[5, -1], np.finfo(float).tiny)  # of running sums
    rss = np.maximum([sums.residual(np.array(knots)) for knots in fits], floor)
    bic = len(y) * np.log(rss / len(y)) + 2 * np.arange(1, len(fits) + 1) * math.log(len(y))
    return _described(sums, t, np.array(fits[int(bic.argmin())]), noise, significance)


def _checked(steps: Any, values: Any, minimum: int) -> tuple[Floats, Floats, Floats]:
    t, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if t.shape != y.shape or t.ndim != 1:
        raise ValueError(f"one value for each step is needed, got shapes {t.shape} and {y.shape}")
    if (t < 0).any() or (np.diff(t) <= 0).any():
        raise ValueError("steps must increase from 0 or above; sort the records and drop repeated ones")
    t, y = t[np.isfinite(y)], y[np.isfinite(y)]
    if len(y) < 2 * minimum + 1:
        raise ValueError(
            f"two pieces of {minimum} records need {2 * minimum + 1} finite records, got {len(y)}; "
            "take more looks"
        )
    return t, np.log1p(t), y


class _Sums:
    """Squared residuals of straight pieces and of chains of them, from running sums: O(1) for each piece."""

    def __init__(self, tau: Floats, y: Floats, minimum: int) -> None:
        self.tau, self.n, self.minimum = tau - tau.mean(), len(y), minimum
        self.mean = y.mean()
        z = y - self.mean
        moments = np.stack([np.ones_like(z), self.tau, self.tau**2, z, self.tau * z, z * z])
        self.running = np.concatenate([np.zeros((6, 1)), moments.cumsum(1)], 1)

    def pieces(self) -> Floats:
        """RSS of a line of its own through records i to j, both included, (n, n); inf where too short."""
        n, s1, s2, z, sz, zz = self.running[:, None, 1:] - self.running[:, :-1, None]  # [i, j]
        with np.errstate(divide="ignore", invalid="ignore"):
            dx, dxy = s2 - s1 * s1 / n, sz - s1 * z / n
            rss = zz - z * z / n - dxy * dxy / dx
        i, j = np.indices(rss.shape)
        return np.where(j - i >= self.minimum, np.maximum(rss, 0), np.inf)

    def normal_equations(self, knots: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Gram matrix and right-hand side of the hat functions at knots (..., k), sorted, ends included."""
        left, right = knots[..., :-1], knots[..., 1:]
        stop = right + (right == self.n - 1)  # a record at a knot is counted once, in the piece behind it
        n, s1, s2, z, sz, _ = self.running[:, stop] - self.running[:, left]
        a, h = self.tau[left], self.tau[right] - self.tau[left]
        u1, u2, uz = (s1 - a * n) / h, (s2 - 2 * a * s1 + a * a * n) / h**2, (sz - a * z) / h
        k = np.arange(knots.shape[-1])
        gram, rhs = np.zeros((*knots.shape, len(k))), np.zeros(knots.shape)
        gram[..., k[:-1], k[:-1]] += n - 2 * u1 + u2
        gram[..., k[1:], k[1:]] += u2
        gram[..., k[:-1], k[1:]] = gram[..., k[1:], k[:-1]] = u1 - u2
        rhs[..., :-1] += z - uz
        rhs[..., 1:] += uz
        return gram, rhs

    def residual(self, knots: NDArray[np.intp]) -> Floats:
        """RSS of the continuous chain with knots (..., k)."""
        gram, rhs = self.normal_equations(knots)
        heights = np.linalg.solve(gram, rhs[..., None])[..., 0]
        rss: Floats = np.maximum(self.running[5, -1] - (rhs * heights).sum(-1), 0)
        return rss


def _fits(sums: _Sums, most: int) -> list[list[int]]:
    """The best knots found for K = 0 ... most, ends included."""
    last = sums.n - 1
    found = [[0, last]]
    for separate in _separate(sums, most):
        starts = [separate, *_with_one_more(sums, found[-1])]
        refined = [_refined(sums, start) for start in starts]
        found.append(min(refined, key=lambda knots: float(sums.residual(np.array(knots)))))
    return found


def _separate(sums: _Sums, most: int) -> list[list[int]]:
    """Knots of the best chains of K + 1 lines that need not meet, K = 1 ... most, by dynamic programming."""
    pieces = sums.pieces()
    cost, origins, found = pieces[0], [], []
    for _ in range(most):
        total = cost[:, None] + pieces  # best chain up to i, and a line from i to j
        origins.append(total.argmin(0))
        cost = total.min(0)
        knots = [sums.n - 1]
        for origin in reversed(origins):
            knots.append(int(origin[knots[-1]]))
        found.append([0, *reversed(knots)])
    return found


def _with_one_more(sums: _Sums, knots: list[int]) -> list[list[int]]:
    """The knots with the best further one, if there is room."""
    room = [c for a, b in pairwise(knots) for c in range(a + sums.minimum, b - sums.minimum + 1)]
    if not room:
        return []
    tried = np.sort([[*knots, c] for c in room], axis=1)
    return [tried[sums.residual(tried).argmin()].tolist()]


def _refined(sums: _Sums, knots: list[int]) -> list[int]:
    """Move each inner knot in turn to its best place between its neighbours until none moves."""
    for _ in range(SWEEPS):
        before = list(knots)
        for k in range(1, len(knots) - 1):
            places = np.arange(knots[k - 1] + sums.minimum, knots[k + 1] - sums.minimum + 1)
            tried = np.tile(knots, (len(places), 1))
            tried[:, k] = places
            knots = tried[sums.residual(tried).argmin()].tolist()
        if knots == before:
            break
    return knots


def _described(sums: _Sums, t: Floats, knots: NDArray[np.intp], noise: float, z: float) -> Stages:
    gram, rhs = sums.normal_equations(knots)
    inverse = np.linalg.inv(gram)
    heights = inverse @ rhs
    scatter = math.sqrt(float(sums.residual(knots)) / max(sums.n - len(knots), 1))
    negligible = NEGLIGIBLE * float(np.ptp(heights) / np.ptp(sums.tau))

    def stretch(first: int, last: int, kind: Kind | None = None) -> Stage:
        span = float(sums.tau[knots[last]] - sums.tau[knots[first]])
        change = float(heights[last] - heights[first])
        spread = float(inverse[first, first] + inverse[last, last] - 2 * inverse[first, last])
        error = max(scatter, noise) * math.sqrt(max(spread, 0.0))  # a chain may also miss a curve
        found = kind or _kind(change, max(z * error, negligible * span))
        start, stop = float(t[knots[first]]), float(t[knots[last]])
        return Stage(found, start, stop, change, error, change / span, error / span)

    pieces = [stretch(k, k + 1) for k in range(len(knots) - 1)]
    kinds = _with_doubtful(pieces, negligible)
    bounds = [0, *(k for k in range(1, len(kinds)) if kinds[k] != kinds[k - 1]), len(kinds)]
    merged = tuple(stretch(a, b, kinds[a]) for a, b in pairwise(bounds))
    return Stages(merged, stretch(0, len(pieces)), t[knots], heights + sums.mean, scatter)


def _kind(change: float, least: float) -> Kind:
    if abs(change) <= least:
        return "plateau"
    return "compression" if change < 0 else "structure formation"


def _with_doubtful(pieces: list[Stage], negligible: float) -> list[Kind]:
    """Kinds; a plateau whose slope is beyond one standard error continues a neighbour that moves that way."""
    kinds = [piece.kind for piece in pieces]
    for k, piece in enumerate(pieces):
        leaning = _kind(piece.slope, max(piece.slope_error, negligible))
        if piece.kind == "plateau" and leaning in (p.kind for p in pieces[max(k - 1, 0) : k + 2]):
            kinds[k] = leaning
    return kinds

"""Stages of learning while they happen: a cumulative-sum test for changes of slope."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from observatory.ntk.stages import Kind

KEPT = 64  # records since the suspected change
LEARNT = 8  # forecast errors before σ is believed


@dataclass(frozen=True)
class StageChange:
    """A stage has given way to another."""

    step: float  # at which it was noticed
    since: float  # step of the first record of the new stage
    before: Kind | None  # None at the first stage
    after: Kind


class StageDetector:
    """Notices online when a series that runs along a line in τ = ln(1 + step) leaves it (CUSUM).

    Each record is forecast from the line through those of its piece so far. The standardised forecast errors
    w are independent and of unit variance while the line holds (Brown, Durbin, Evans 1975), so that
    g± ← max(0, g± ± w - drift) stay small; g > threshold is a change, dated to where that sum last was zero.
    A new piece begins there. The stage is the sign of its slope, a plateau if the slope is within
    `significance` standard errors of zero.

    Args:
        noise: σ of the series; None learns it from the forecast errors.
        drift: half of the shift of w that should be noticed soon, in standard deviations.
        threshold: the higher, the fewer false alarms and the longer the delay. With the defaults and known
            noise the mean time between false alarms is about 10⁴ records.
        minimum: records of a piece before its stage is named; twice as many before it is called a plateau.
        significance: standard errors of the slope.
    """

    def __init__(
        self,
        *,
        noise: float | None = None,
        drift: float = 0.5,
        threshold: float = 8.0,
        minimum: int = 4,
        significance: float = 3.5,
    ) -> None:
        if minimum < 3:
            raise ValueError(f"a line and its scatter need at least 3 records, got minimum={minimum}")
        self.noise, self.drift, self.threshold = noise, drift, threshold
        self.minimum, self.significance = minimum, significance
        self.kind: Kind | None = None
        self._records: list[list[float]] = []  # (step, value) of the present piece since its last restart
        self._sums = [0.0] * 5  # n, mean τ, mean y, Σ dτ², Σ dτ dy of the piece
        self._start = 0.0  # step at which it begins
        self._g = [0.0, 0.0]  # g+, g-
        self._suspected = [0, 0]  # records since g± was zero
        self._learnt = [0.0, 0.0]  # Σ of squared forecast errors at unit σ, and their number

    def update(self, step: float, value: float) -> StageChange | None:
        """Take the next record; returns the change if with it a new stage is recognised.

        Values that are not finite are passed over.
        """
        if not math.isfinite(value):
            return None
        self._records = [*self._records[-KEPT + 1 :], [float(step), float(value)]]
        if self._sums[0] >= self.minimum - 1:
            self._test(math.log1p(step), value)
        if max(self._g) > self.threshold:
            side = int(self._g[1] > self._g[0])
            self._restart(self._records[-max(self._suspected[side], 2) :])
        else:
            self._add(step, value)
        return self._recognised(step)

    def _test(self, tau: float, value: float) -> None:
        n, mean_tau, mean, s_xx, s_xy = self._sums
        error = value - mean - s_xy / s_xx * (tau - mean_tau)
        error /= math.sqrt(1 + 1 / n + (tau - mean_tau) ** 2 / s_xx)
        sigma = self._sigma()
        if self._g == [0.0, 0.0] or abs(error) < 3 * sigma:  # errors of a broken line are not noise
            self._learnt = [self._learnt[0] + error * error, self._learnt[1] + 1]
        if sigma == 0:
            return
        for side, w in enumerate((error / sigma, -error / sigma)):
            self._g[side] = max(0.0, self._g[side] + w - self.drift)
            self._suspected[side] = self._suspected[side] + 1 if self._g[side] else 0

    def _sigma(self) -> float:
        if self.noise is not None:
            return self.noise
        total, count = self._learnt
        return math.sqrt(total / count) if count >= LEARNT else 0.0

    def _add(self, step: float, value: float) -> None:
        if self._sums[0] == 0:
            self._start = float(step)
        n, mean_tau, mean, s_xx, s_xy = self._sums
        dx, dy = math.log1p(step) - mean_tau, value - mean
        share = n / (n + 1)
        means = [mean_tau + dx / (n + 1), mean + dy / (n + 1)]
        self._sums = [n + 1, *means, s_xx + share * dx * dx, s_xy + share * dx * dy]

    def _restart(self, records: list[list[float]]) -> None:
        self._g, self._suspected, self._sums = [0.0, 0.0], [0, 0], [0.0] * 5
        self._records = records
        for step, value in records:
            self._add(step, value)

    def _recognised(self, step: float) -> StageChange | None:
        n, _, _, s_xx, s_xy = self._sums
        sigma = self._sigma()
        if n < self.minimum or sigma == 0:
            return None
        score = s_xy / math.sqrt(s_xx) / sigma
        kind: Kind = "plateau"
        if abs(score) > self.significance:
            kind = "compression" if score < 0 else "structure formation"
        elif n < 2 * self.minimum:
            return None
        if kind == self.kind:
            return None
        change = StageChange(float(step), self._start, self.kind, kind)
        self.kind = kind
        return change

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had not been interrupted."""
        return {
            "kind": self.kind, "records": self._records, "sums": self._sums, "start": self._start,
            "g": self._g, "suspected": self._suspected, "learnt": self._learnt,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kind, self._start = state["kind"], state["start"]
        self._records = [list(record) for record in state["records"]]
        self._sums, self._g = list(state["sums"]), list(state["g"])
        self._suspected, self._learnt = list(state["suspected"]), list(state["learnt"])

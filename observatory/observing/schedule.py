"""Which steps are looked at."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

NEVER = 2**62  # a step that no run reaches


@dataclass(frozen=True)
class Schedule:
    """Optimizer steps at which a look is due. The first and the last look of a run are taken in any case.

    One of four, the first by default:

    Args:
        looks_per_decade: steps round(10^(k/n)), k = 0, 1, 2, ...: evenly spaced in ln(step). They do not
            depend on the length of the run, so that a resumed longer run continues them.
        every_n_steps: multiples of n.
        every_n_epochs: ends of the epochs whose number, counted from 1, is a multiple of n.
        at: these steps.

    Raises:
        ValueError: if more than one is given, or one is not positive.
    """

    looks_per_decade: float | None = None
    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    at: Sequence[int] | None = None

    def __post_init__(self) -> None:
        names = ("looks_per_decade", "every_n_steps", "every_n_epochs", "at")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a schedule is one of {' and '.join(given)}; give only one of them")
        if not given:
            object.__setattr__(self, "looks_per_decade", 12.0)
        for name in names[:3]:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        if self.at is not None:
            if any(step < 0 for step in self.at):
                raise ValueError(f"at must hold steps >= 0, got {min(self.at)}")
            object.__setattr__(self, "at", tuple(sorted(set(self.at))))

    def next_after(self, step: int) -> int:
        """The first due step > `step`; `NEVER` if there is none or epochs decide."""
        if self.every_n_epochs is not None:
            return NEVER
        if self.every_n_steps is not None:
            return (step // self.every_n_steps + 1) * self.every_n_steps
        if self.at is not None:
            later = bisect_right(self.at, step)
            return self.at[later] if later < len(self.at) else NEVER
        assert self.looks_per_decade is not None  # set in __post_init__ where nothing else is
        n = self.looks_per_decade
        k = max(
            0, math.floor(n * math.log10(max(step, 1)))
        )  # round(10^(k/n)) may be step itself: look further
        while (due := round(10 ** (k / n))) <= step:
            k += 1
        return due

    def progress(self, step: int, total: int) -> float:
        """The share of a run of `total` steps that is over at `step`, counted in looks that were due."""
        if self.every_n_epochs is not None or self.every_n_steps is not None:
            return min(1.0, step / max(total, 1))
        return min(1.0, self.count(0, step) / max(self.count(0, total), 1))

    def count(self, step: int, last: int) -> int:
        """Number of due steps after `step` and up to `last`."""
        if self.at is not None:
            return bisect_right(self.at, last) - bisect_right(self.at, step)
        if self.every_n_steps is not None:
            return last // self.every_n_steps - step // self.every_n_steps
        count = 0
        while (step := self.next_after(step)) <= last:
            count += 1
        return count

    def due_after_epoch(self, epoch: int) -> bool:
        """Whether the end of epoch number `epoch` (counted from 0) is looked at."""
        return self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0

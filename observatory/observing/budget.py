"""What looking may cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

ADVANCE = 2.0  # seconds of training whose earnings may be spent in advance where the length is not known
PLANNED_SHARE = 0.9  # of the budget: the cost of a look fluctuates, and planning for less keeps the promise


class Stopwatch:
    """Seconds of host or device time, whichever is longer, without synchronising the device.

    On a GPU the time is read from events when it is asked for, which is at the next look.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event, float]] = []

    @contextmanager
    def running(self, device: torch.device | None = None) -> Iterator[None]:
        """Time the body, on the stream of `device` if that is a GPU."""
        started = time.perf_counter()
        events = None
        if device is not None and device.type == "cuda":
            events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            events[0].record(torch.cuda.current_stream(device))
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            if events is None:
                self._seconds += seconds
            else:
                events[1].record(torch.cuda.current_stream(device))
                self._pending.append((*events, seconds))

    def seconds(self) -> float:
        """All seconds of what has finished by now."""
        waiting = []
        for start, end, host in self._pending:
            if end.query():
                self._seconds += max(host, start.elapsed_time(end) / 1e3)
            else:
                waiting.append((start, end, host))
        self._pending = waiting
        return self._seconds


class Budget:
    """Keeps observing below a share of the training time.

    A look may be taken when what was spent plus its expected cost stays below the share of the training time
    so far. Looks are densest at the start of a run: where its length is known, what the run will earn is
    spread evenly over the scheduled looks, so that too many of them are thinned and not cut off; where it is
    not, two seconds' worth may be spent in advance. The first and the last look are free. Samples are never
    postponed, and their cost counts.

    Args:
        max_overhead: seconds of observing per second of training; None switches the budget off.

    Raises:
        ValueError: if the share is not positive.
    """

    def __init__(self, max_overhead: float | None = 0.05) -> None:
        if max_overhead is not None and not 0 < max_overhead < math.inf:
            raise ValueError(f"max_overhead must be a share such as 0.05, or None, got {max_overhead!r}")
        self.max_overhead = max_overhead
        self.spent = 0.0  # seconds charged
        self.free = 0.0  # seconds of first and last looks
        self.expected = 0.0  # seconds that one more look is expected to cost
        self._mean = 0.0  # of charged looks, exponentially weighted
        self._before = 0.0  # seconds of training before `begin`: of an earlier fit, or from a checkpoint
        self._begun: float | None = None  # the clock stands
        self._observed = 0.0  # seconds since `begin` that went into observing

    def begin(self) -> None:
        """Training begins now."""
        self._begun, self._observed = time.perf_counter(), 0.0

    def end(self) -> None:
        """Training is over, for now; safe to call twice."""
        self._before, self._begun = self.training, None

    @property
    def training_here(self) -> float:
        """Seconds since `begin` that went into everything but observing."""
        if self._begun is None:
            return 0.0
        return max(0.0, time.perf_counter() - self._begun - self._observed)

    @property
    def training(self) -> float:
        """Seconds of the whole run, over all its parts, that went into everything but observing."""
        return self._before + self.training_here

    @property
    def share(self) -> float:
        """Seconds charged per second of training so far."""
        return self.spent / max(self.training, 1e-9)

    def charge_look(self, seconds: float, *, free: bool = False) -> None:
        """Book the cost of a look."""
        self._observed += seconds
        if free:
            self.free += seconds
            self.expected = (
                self.expected or seconds
            )  # a first look warms up: better than no estimate, no more
        else:
            self.spent += seconds
            self._mean = 0.7 * self._mean + 0.3 * seconds if self._mean else seconds
            self.expected = max(seconds, self._mean)

    def charge_other(self, seconds: float, *, free: bool = False) -> None:
        """Book the cost of a sample or a figure, which says nothing about that of the next look."""
        self._observed += seconds
        if free:
            self.free += seconds
        else:
            self.spent += seconds

    def seconds_to_wait(self, cost: float | None = None, *, advance: float | None = None) -> float:
        """Seconds of further training until `cost` can be afforded; 0 if it can be now.

        Args:
            cost: seconds; default that of one more look.
            advance: seconds of training whose earnings may be spent by now, where the run's length is known.
        """
        if self.max_overhead is None:
            return 0.0
        needed = (self.spent + (self.expected if cost is None else cost)) / (
            PLANNED_SHARE * self.max_overhead
        )
        if advance is None:
            return max(0.0, needed - self.training - ADVANCE)
        return 0.0 if needed <= advance else max(0.0, needed - self.training)

    def state_dict(self) -> dict[str, float]:
        return {"spent": self.spent, "free": self.free, "expected": self.expected, "training": self.training}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.spent, self.free, self.expected = state["spent"], state["free"], state["expected"]
        self._mean, self._before = self.expected, state["training"]

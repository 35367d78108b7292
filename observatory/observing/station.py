"""One instrument on duty: its schedule, its budget, its part of the record, and its failures."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from observatory.looking.look import Look
from observatory.looking.probe import Probe
from observatory.looking.ranks import PeerFailed, broadcast_object, rank, together, warn
from observatory.looking.undisturbed import undisturbed
from observatory.observing.budget import Budget, Stopwatch
from observatory.observing.instrument import History, Instrument
from observatory.observing.schedule import NEVER, Schedule

if TYPE_CHECKING:
    from observatory.records import InstrumentRecord


class Station:
    """Runs one instrument: knows when its next look is due, and takes it."""

    def __init__(
        self, instrument: Instrument, schedule: Schedule, budget: Budget, *, strict: bool = False
    ) -> None:
        self.instrument = instrument
        self.schedule = schedule
        self.budget = budget
        self.strict = strict
        self.off = False
        self.probe: Probe | None = None
        self.record: InstrumentRecord | None = None
        self.next = NEVER  # the step at which to look, or to ask the budget again
        self.planned_at = NEVER  # the scheduled step that `next` stands for
        self.last = -1  # step of the last look
        self.planned = self.taken = self.postponed = 0
        self.sampling = False
        self.watch = Stopwatch()
        self._charged, self._last_free = 0.0, False
        self.observes = type(instrument).observe is not Instrument.observe
        self._fresh = instrument.state_dict()
        self.concludes = type(instrument).conclude is not Instrument.conclude

    def begin(self, step: int) -> None:
        """Training begins, or is resumed, after `step` updates; a new run begins with a fresh instrument."""
        if step == 0 and self.last >= 0:
            self.last, self.planned, self.taken, self.postponed = -1, 0, 0, 0
            self.off = False
            self.instrument.load_state_dict(self._fresh)
        self.probe = None
        self.budget.begin()
        self._plan(step)

    @property
    def waiting(self) -> bool:
        """Whether its probe has not been found yet."""
        return self.probe is None and not self.off and (self.observes or self.concludes)

    def due(self, step: int, seconds_per_step: float, advance: float | None) -> bool:
        """Whether to look now. Postpones the look to a later step where the budget does not allow it now."""
        if step < self.next or self.off or not self.observes:
            return False
        if step == self.last:
            self._plan(step)
            return False
        if self.next == self.planned_at:
            self.planned += 1
        if self.budget.max_overhead is None:
            return True
        self._settle()
        wait = self.budget.seconds_to_wait(advance=advance) if rank() == 0 else 0.0
        steps = broadcast_object(0 if wait == 0.0 else max(1, round(wait / max(seconds_per_step, 1e-9))))
        if steps == 0:
            return True
        if self.next == self.planned_at:
            self.postponed += 1
            self._note({"event": "postponed", "step": step})
        self.next = min(step + steps, self.schedule.next_after(step))
        if self.next < step + steps:
            self.planned_at = self.next  # the next scheduled look comes first, and stands for this one too
        return False

    def look(
        self, make: Callable[[Station], Look], step: int, device: torch.device, *, free: bool = False
    ) -> Mapping[str, Tensor]:
        """Observe now; record and return what was seen, nothing if the instrument failed."""
        scheduled = min(self.planned_at, step)  # earlier than `step` if the look was postponed
        started = time.perf_counter()
        with self.watch.running(device):
            values = self._guarded(lambda: self.instrument.observe(make(self)), device)
            self._write(step, values)
        if self.off:
            return {}
        self.last, self._last_free = step, free
        self.taken += 1
        self._settle()
        seconds = time.perf_counter() - started
        self._note({"event": "look", "step": step, "planned": scheduled, "seconds": seconds, "free": free})
        if not free or step >= self.next:
            self._plan(step)
        return values

    def _settle(self) -> None:
        """Charge what is known by now of the cost of the last look; on a GPU that is at the next one."""
        seconds = self.watch.seconds()
        if seconds > self._charged:
            self.budget.charge_look(seconds - self._charged, free=self._last_free)
            self._charged = seconds

    def sample(self, make: Callable[[Station], Look], step: int, device: torch.device) -> None:
        """Sample this step."""
        self.sampling = True
        started = time.perf_counter()
        self._write(
            step, self._guarded(lambda: self.instrument.sample(make(self)) or {}, device, streams=False)
        )
        self.budget.charge_other(time.perf_counter() - started)

    def conclude(
        self, make: Callable[[Station], Look], step: int, device: torch.device
    ) -> Mapping[str, Tensor]:
        """Close the window, or the run."""
        self.sampling = False
        started = time.perf_counter()

        def conclusion() -> Mapping[str, Tensor]:
            past = self.record.history() if self.record is not None else {}
            return self.instrument.conclude(History(make(self), past))

        values = self._guarded(conclusion, device)
        self._write(step, values)
        seconds = time.perf_counter() - started
        self.budget.charge_look(seconds, free=True)
        self._note({"event": "conclusion", "step": step, "seconds": seconds})
        return values

    def _guarded(
        self, act: Callable[[], Mapping[str, Tensor]], device: torch.device, *, streams: bool = True
    ) -> Mapping[str, Tensor]:
        """Whatever goes wrong inside an instrument switches it off, once, on all ranks, and nothing else."""
        try:
            with together(), undisturbed(device, streams=streams):
                return {key: value.detach() for key, value in act().items()}
        except Exception as error:  # the training run belongs to somebody else
            if self.strict:
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the tensors of the look
            self.fail(error)
            return {}

    def fail(self, failure: Exception) -> None:
        """Switch the instrument off and say why, once."""
        if self.off:
            return
        self.off = True
        why = str(failure) if isinstance(failure, PeerFailed) else f"{type(failure).__name__}: {failure}"
        if isinstance(failure, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        warn(f"instrument {self.instrument.name!r} is switched off, training goes on: {why}")
        self._note({"event": "failure", "reason": why})

    def _write(self, step: int, values: Mapping[str, Tensor]) -> None:
        if self.record is None or not values:
            return
        try:
            self.record.append(step, values, coordinates=self.instrument.coordinates())
        except OSError as error:
            self._stop_recording(error)

    def _note(self, event: dict[str, Any]) -> None:
        if self.record is None:
            return
        try:
            self.record.note(event)
        except OSError as error:
            self._stop_recording(error)

    def _stop_recording(self, error: OSError) -> None:
        self.record = None
        if self.strict:
            raise error
        warn(f"instrument {self.instrument.name!r} is no longer recorded, training goes on: {error}")

    def _plan(self, step: int) -> None:
        self.next = self.planned_at = self.schedule.next_after(step) if self.observes else NEVER

    def state_dict(self) -> dict[str, Any]:
        return {
            "last": self.last,
            "planned": self.planned,
            "taken": self.taken,
            "postponed": self.postponed,
            "budget": self.budget.state_dict(),
            "instrument": self.instrument.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last = state["last"]
        self.planned, self.taken, self.postponed = state["planned"], state["taken"], state["postponed"]
        self.budget.load_state_dict(state["budget"])
        self.instrument.load_state_dict(state["instrument"])

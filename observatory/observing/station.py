"""One instrument on duty: its schedule, its budget, its part of the record, and its failures."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from observatory.looking.look import Look
from observatory.looking.probe import Probe
from observatory.looking.ranks import PeerFailed, broadcast_object, rank, together, warn, world_size
from observatory.looking.undisturbed import undisturbed, undisturbed_already
from observatory.observing.budget import Budget, Stopwatch
from observatory.observing.instrument import History, Instrument
from observatory.observing.plain import fresh_state, plain_state
from observatory.observing.schedule import NEVER, Schedule

if TYPE_CHECKING:
    from observatory.records import InstrumentRecord


PATIENCE = 16  # steps after which the budget is asked again, or as many as were made: steps may get slower


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
        self.passing: Look | None = None  # the last one for a sample
        self.places: list[tuple[Tensor, int]] = []  # where its weights lay; empty if it holds copies
        self.record: InstrumentRecord | None = None
        self.next = NEVER  # the step at which to look, or to ask the budget again
        self.planned_at = NEVER  # the scheduled step that `next` stands for
        self.last = -1  # step of the last look
        self.asked = -1  # step up to which planned looks are counted
        self.seen = -1  # last update that it was told of
        self.epochs = 0  # that ended
        self.behind = False  # resumed from a checkpoint that was saved before its turn came
        self.planned = self.taken = self.postponed = 0
        self.sampling = False
        self.watch = Stopwatch()
        self._charged, self._last_free = 0.0, False
        self._began = 0
        self._alone = False  # the only process
        self._again: Callable[[int], bool] | None = None  # the last sample, at another step
        kind = type(instrument)
        self.observes = kind.observe is not Instrument.observe
        self.concludes = kind.conclude is not Instrument.conclude
        self.passes = kind.trains_on is not Instrument.trains_on  # over the training data
        self._samples = kind.samples_at is not Instrument.samples_at
        self._said: set[str] = set()  # reasons that were given already
        self._fresh = self._state_of_instrument(fresh_state)

    def begin(self, step: int, epoch: int) -> None:
        """Training begins, or is resumed, after `step` updates; a new run begins with a fresh instrument."""
        if step == 0 and self.seen >= 0:
            self.last = self.asked = self.seen = -1
            self.planned = self.taken = self.postponed = self.epochs = 0
            self.off = self.sampling = False
            self.budget = Budget(self.budget.max_overhead)
            self._restore(self._fresh)
        self.probe = self.passing = self._again = None
        self._began, self._alone = step, world_size() == 1
        self.budget.begin()
        self._plan(step)
        self.behind = self.missed_update(step) or self.missed_epoch(step, epoch)
        if self.missed_update(step) and self.observes and self.schedule.next_after(step - 1) == step:
            self.next = self.planned_at = step

    def missed_update(self, step: int) -> bool:
        """Whether the checkpoint was saved, or the look interrupted, before its turn came at this step."""
        return 0 <= self.seen < step

    def missed_epoch(self, step: int, epoch: int) -> bool:
        """The same at the end of the epoch before `epoch`, if that is looked at."""
        return self.epochs < epoch and self.schedule.due_after_epoch(epoch - 1) and 0 <= self.last < step

    @property
    def waiting(self) -> bool:
        """Whether its probe has not been found yet."""
        return self.probe is None and not self.off and (self.observes or self.concludes)

    @property
    def probe_file(self) -> Path | None:
        """Where the record keeps its probe; None where nothing is recorded."""
        return None if self.record is None else self.record.directory / "probe.npz"

    def due(self, step: int, seconds_per_step: float, advance: float | None) -> bool:
        """Whether to look now. Postpones the look to a later step where the budget does not allow it now."""
        if step < self.next or self.off or not self.observes:
            return False
        if step == self.last:
            self._plan(step)
            return False
        by_epochs = self.schedule.every_n_epochs is not None and self.next == self.planned_at
        self.planned += 1 if by_epochs else self.schedule.count(self.asked, step)
        self.asked = step
        if self.budget.max_overhead is None:
            return True
        self._settle()
        wait = self.budget.seconds_to_wait(advance=advance) if rank() == 0 else 0.0
        steps = broadcast_object(0 if wait == 0.0 else max(1, round(wait / max(seconds_per_step, 1e-9))))
        if steps == 0:
            return True
        if self.next == self.planned_at:  # one look will stand for all that fall due while it waits
            self.postponed += 1
            self._note({"event": "postponed", "step": step})
        self.next = step + min(steps, max(PATIENCE, step - self._began))
        return False

    def look(
        self, make: Callable[[Station], Look], step: int, device: torch.device, *, free: bool = False
    ) -> Mapping[str, Tensor]:
        """Observe now; record and return what was seen, nothing if the instrument failed."""
        self.asked = max(self.asked, step)
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

    def wants_sample(self, step: int, epoch: int) -> bool:
        """Whether the instrument samples this step."""
        if not self._samples:
            return False
        try:
            return self.instrument.samples_at(step, epoch)
        except Exception as error:
            if self.strict:
                raise
            self.fail(error)
            return False

    def sample(self, make: Callable[[Station], Look], step: int, device: torch.device) -> None:
        """Sample this step."""
        self.sampling = True
        started = time.perf_counter()
        if self._alone and undisturbed_already(device):
            values = self._sample_as_it_is(make)
        else:
            values = self._guarded(lambda: self.instrument.sample(make(self)) or {}, device, streams=False)
        if values:
            self._write(step, values)
        self.budget.charge_other(time.perf_counter() - started)

    def sample_again(self, step: int) -> bool:
        """Sample this step as the last one, if the instrument can and the weights lie where they lay."""
        if self._again is None:
            return False
        started = time.perf_counter()
        try:
            done = all([p.data_ptr() == place for p, place in self.places]) and self._again(step)
        except Exception as error:
            self._failed(error)
            return True
        self.budget.charge_other(time.perf_counter() - started)
        return done

    def conclude(
        self, make: Callable[[Station], Look], step: int, device: torch.device
    ) -> Mapping[str, Tensor]:
        """Close the window, or the run."""
        self.sampling, self._again = False, None
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
                return _tensors(act())
        except Exception as error:  # the training run belongs to somebody else
            self._failed(error)
            return {}

    def _sample_as_it_is(self, make: Callable[[Station], Look]) -> Mapping[str, Tensor] | None:
        """Without contexts, each of which takes longer than a sample."""
        try:
            values = self.instrument.sample(make(self))
            self._again = self.instrument.repeats() if self.places else None
            return _tensors(values) if values else None
        except Exception as error:
            self._failed(error)
            return None
        finally:
            if not torch.is_grad_enabled():
                torch.set_grad_enabled(True)

    def _failed(self, error: Exception) -> None:
        if self.strict:
            raise error
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the look
        self.fail(error)

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
        except Exception as error:  # the disk, a changed shape, a quantity that was not declared
            self.stop_recording(error)

    def _note(self, event: dict[str, Any]) -> None:
        if self.record is None:
            return
        try:
            self.record.note(event)
        except OSError as error:
            self.stop_recording(error)

    def stop_recording(self, error: Exception) -> None:
        """Say why, once; the instrument goes on looking, for the loggers."""
        self.record = None
        if self.strict:
            raise error
        self._say("is not recorded any more", error)

    @contextmanager
    def showing(self, what: str) -> Iterator[None]:
        """What cannot be shown must not cost the numbers."""
        try:
            yield
        except Exception as error:
            if self.strict:
                raise
            self._say(what, error)

    def _say(self, what: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        if reason not in self._said:  # one cause, one warning, whatever it leads to
            self._said.add(reason)
            warn(f"instrument {self.instrument.name!r} {what}, training goes on: {reason}")

    def _plan(self, step: int) -> None:
        self.next = self.planned_at = self.schedule.next_after(step) if self.observes else NEVER

    def state_dict(self) -> dict[str, Any]:
        return {
            "last": self.last,
            "asked": self.asked,
            "seen": self.seen,
            "epochs": self.epochs,
            "planned": self.planned,
            "taken": self.taken,
            "postponed": self.postponed,
            "sampling": self.sampling,
            "budget": self.budget.state_dict(),
            "instrument": self._state_of_instrument(plain_state),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last, self.asked, self.seen = state["last"], state["asked"], state["seen"]
        self.epochs = state["epochs"]
        self.planned, self.taken, self.postponed = state["planned"], state["taken"], state["postponed"]
        self.sampling = state.get("sampling", False)  # of checkpoints before there was one
        self.budget.load_state_dict(state["budget"])
        self._restore(state["instrument"])

    def _state_of_instrument(
        self, copied: Callable[[Mapping[str, Any]], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """None where it has none that a checkpoint could hold: a resumed run then begins it afresh."""
        try:
            return copied(self.instrument.state_dict())
        except Exception as error:
            if self.strict:
                raise
            self._say("leaves no state in checkpoints and begins afresh when resumed", error)
            return None

    def _restore(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        try:
            self.instrument.load_state_dict(state)
        except Exception as error:  # of another version
            if self.strict:
                raise
            self._say("cannot use its state of the checkpoint and begins afresh", error)


def _tensors(values: Any) -> dict[str, Tensor]:
    """What a verb returned, detached.

    Raises:
        TypeError: if it is no mapping of names to tensors.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"it returned {type(values).__name__}, not a mapping of names to tensors")
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"it returned {type(value).__name__} for {name!r}, not a tensor")
    return {name: value.detach() for name, value in values.items()}

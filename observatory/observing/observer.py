"""The observer: decides when the instruments look, keeps the record, and feeds the dashboards."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from observatory.looking.likelihood import likelihood_loss
from observatory.looking.live import LiveModel
from observatory.looking.look import Look
from observatory.looking.model import ModelFunction
from observatory.looking.probe import Probe
from observatory.looking.ranks import rank, together, warn, world_size
from observatory.observing.budget import Budget
from observatory.observing.dashboard import Dashboard, scalars_of
from observatory.observing.instrument import Instrument
from observatory.observing.logbook import Logbook
from observatory.observing.schedule import Schedule
from observatory.observing.source import ProbeSource
from observatory.observing.station import Station

STEPS_TO_EXTRAPOLATE = 10  # the first steps of a run are slow
FIGURES_PER_DECADE = 3.0  # figures cost a hundred times what scalars do


P = ParamSpec("P")


def _survived(act: Callable[P, None]) -> Callable[P, None]:
    """The last resort: whatever a verb of the observer did not foresee ends the watching, not the training.

    With several processes it is raised: where one of them stopped to watch the others would wait for it.
    """

    @wraps(act)
    def survive(*args: P.args, **kwargs: P.kwargs) -> None:
        observer: Any = args[0]
        try:
            act(*args, **kwargs)
        except Exception as error:
            if observer.strict or world_size() > 1:
                raise
            observer.give_up(error)

    return survive


class Observer:
    """Watches one model with several instruments.

    Call `start` when training begins or is resumed, `after_step` after every optimizer update, `after_epoch`
    after every epoch, `finish` when training ends, and `close` in any case. It never raises because an
    instrument or the disk failed, unless `strict`.

    Args:
        instruments: with different names.
        schedule: when to look.
        max_overhead: seconds of observing per second of training, shared equally by the instruments; None
            switches the budget off.
        strict: let failures of an instrument or of the record raise.

    Raises:
        ValueError: if two instruments have the same name.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        *,
        schedule: Schedule | None = None,
        max_overhead: float | None = 0.05,
        strict: bool = False,
    ) -> None:
        names = [instrument.name for instrument in instruments]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two instruments are called {twice.pop()!r}; give one of them another name=")
        share = None if max_overhead is None else max_overhead / max(len(names), 1)
        schedule = schedule or Schedule()
        self.stations = [Station(one, schedule, Budget(share), strict=strict) for one in instruments]
        self.strict = strict
        self.logbook = Logbook()
        self.latest: dict[str, float] = {}  # scalars of the last look of each instrument, by tag
        self._figures = Schedule(looks_per_decade=FIGURES_PER_DECADE)
        self._figures_due = 0
        self._figures_cost = 0.0
        self._dashboards: Sequence[Dashboard] = ()
        self._model: nn.Module | None = None  # as it was given
        self._live: LiveModel | None = None
        self._on = False

    def give_up(self, error: Exception) -> None:
        """Stop watching this run and say why."""
        if self.strict:
            raise error
        reason = f"{type(error).__name__}: {error}"
        warn(f"the observatory does not watch this run, training goes on: {reason}")
        self.close()

    def prepare(self, model: nn.Module) -> None:
        """Make the twin, before a strategy wraps or shards the model. Optional."""
        if self._live is None or self._model is not model:
            self._live, self._model = LiveModel(model), model
        self._live.prepare()

    @_survived
    def start(
        self,
        model: nn.Module,
        source: ProbeSource,
        *,
        step: int = 0,
        epoch: int = 0,
        total_steps: int | None = None,
        directory: Path | None = None,
        dashboards: Sequence[Dashboard] = (),
        optimizers: Sequence[Optimizer] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the record and take the first look, unless the run is resumed. Every rank must call it.

        Args:
            model: the module in training.
            source: of the probes.
            step: updates that the weights have seen; > 0 continues the record of an earlier run.
            epoch: number of the epoch, counted from 0.
            total_steps: updates at the end of the run, where known.
            directory: of the record; None records nothing.
            dashboards: loggers.
            optimizers: for instruments that read learning rates.
            metadata: what else to say of the run.
        """
        try:
            self.prepare(model)
        except Exception as error:  # a module that cannot be copied
            self.give_up(error)
            return
        self._source, self._optimizers = source, tuple(optimizers)
        self._begun_at, self._total_steps = step, total_steps
        self._dashboards = dashboards if rank() == 0 else ()
        self._introduced = False
        self._on = True
        self._figures_due = 0 if step == 0 else self._figures.next_after(step)
        for station in self.stations:
            station.begin(step, epoch)
        if rank() == 0 and directory is not None:
            self._open_record(directory, step, metadata or {})
        for station in self.stations:
            self._first(station, step, epoch)

    def _first(self, station: Station, step: int, epoch: int) -> None:
        """The look at the beginning; in a resumed run what the checkpoint came too early for."""
        if station.last < 0 and station.observes:
            self._look(station, step, epoch, free=True)
        else:
            if station.missed_update(step):  # it may have been the last one of the epoch before
                self._attend(station, step, min(epoch, station.epochs))
            if station.missed_epoch(step, epoch):
                self._attend_epoch(station, step, epoch - 1)
        if station.waiting:  # a stream's first batches are kept for its probe
            self._probe_ready(station)
        station.seen, station.epochs = step, epoch

    @property
    def listening(self) -> bool:
        """Whether `offer_batch` may be wanted, found out in less time than by calling it."""
        return self._on and None in [station.probe for station in self.stations]

    @_survived
    def offer_batch(self, batch: Any) -> None:
        """A training batch passes by; only wanted while a probe waits for a stream."""
        if self._on and any(s.waiting for s in self.stations):
            self._source.offer(batch)

    @_survived
    def after_step(self, step: int, epoch: int) -> None:
        """An optimizer update is done; the weights have seen `step` of them."""
        if not self._on:
            return
        for station in self.stations:
            if not station.off:
                self._attend(station, step, epoch)
            station.seen = step

    def _attend(self, station: Station, step: int, epoch: int) -> None:
        if not station.observes and station.waiting:
            self._probe_ready(station)
        if station.wants_sample(step, epoch):
            if not station.sample_again(step):
                station.sample(partial(self._passing, step=step, epoch=epoch), step, self._device)
        elif station.sampling:
            self._conclude(station, step, epoch)
        if step >= station.next and station.due(step, *self._pace(station, step)):
            self._look(station, step, epoch)

    @_survived
    def after_epoch(self, step: int, epoch: int) -> None:
        """Epoch number `epoch`, counted from 0, is done."""
        if not self._on:
            return
        for station in self.stations:
            self._attend_epoch(station, step, epoch)
            station.epochs = epoch + 1

    def _attend_epoch(self, station: Station, step: int, epoch: int) -> None:
        if station.schedule.due_after_epoch(epoch) and station.last < step:
            station.next = station.planned_at = step
            if station.due(step, *self._pace(station, step)):
                self._look(station, step, epoch)

    @_survived
    def finish(self, step: int, epoch: int) -> None:
        """Training ends: take the last look and let the instruments conclude."""
        if not self._on:
            return
        self._figures_due = min(self._figures_due, step)
        for station in self.stations:
            if station.observes and not station.off and station.last < step:
                self._look(station, step, epoch, free=True)
            if station.concludes and not station.off:
                self._conclude(station, step, epoch)
            if station.waiting and step > self._begun_at and self._live is not None and self._live.ready:
                self._no_probe(station, ValueError(self._source.shortage(station.instrument)))
        self.close()

    @_survived
    def close(self) -> None:
        """Close the record. Safe to call at any time, and twice."""
        if self._on:
            self._on = False
            for station in self.stations:
                station.budget.end()
            self.logbook.close(self.stations)

    # Looking

    def _look(self, station: Station, step: int, epoch: int, *, free: bool = False) -> None:
        if not self._probe_ready(station):
            return
        make = partial(self._now, step=step, epoch=epoch)
        values = station.look(make, step, self._device, free=free)
        self._show(station, values, step, free=free)

    def _conclude(self, station: Station, step: int, epoch: int) -> None:
        if self._probe_ready(station):
            make = partial(self._now, step=step, epoch=epoch)
            self._show(station, station.conclude(make, step, self._device), step, free=True)

    def _probe_ready(self, station: Station) -> bool:
        """Find the station's probe; a stream may not have brought enough examples yet."""
        live = self._live
        assert live is not None  # set in `start`
        if station.probe is None and not station.off and live.ready:
            try:
                with together():
                    station.probe = self._source.find(
                        station.instrument, self._device, live.dtype, kept=station.probe_file
                    )
                    if station.passes:
                        station.instrument.trains_on(self._source.training())
            except Exception as error:  # the data set belongs to somebody else
                self._no_probe(station, error)
            if station.probe is not None:
                self.logbook.keep_probe(station)
                if not any(s.waiting for s in self.stations):
                    self._source.forget()
        if station.probe is None:
            station.next = -1  # look as soon as there are enough examples, and no lazy parameter is left
        return station.probe is not None and not station.off

    def _no_probe(self, station: Station, error: Exception) -> None:
        if self.strict:
            raise error
        station.fail(error)

    def _now(self, station: Station, step: int, epoch: int) -> Look:
        """A look at the model as it is."""
        one, live = station.instrument, self._live
        assert live is not None  # set in `start`
        model = live.function(forward=one.forward, output=one.output, select=one.select)
        return self._through(model, station, step, epoch)

    def _passing(self, station: Station, step: int, epoch: int) -> Look:
        """The same, after every update: the last such look a step later, if nothing has moved since."""
        one, live, last = station.instrument, self._live, station.passing
        assert live is not None  # set in `start`
        model = live.same_function(forward=one.forward, output=one.output, select=one.select)
        if last is not None and last.model is model and last.probe is station.probe:
            return last.later(step, epoch)
        station.passing, station.places = self._through(model, station, step, epoch), live.places(model)
        return station.passing

    def _through(self, model: ModelFunction, station: Station, step: int, epoch: int) -> Look:
        live = self._live
        assert live is not None  # set in `start`
        return Look(
            model=model,
            probe=station.probe if station.probe is not None else Probe(()),
            step=step,
            epoch=epoch,
            loss=station.instrument.loss or likelihood_loss,
            gradients=live.gradients(),
            optimizers=self._optimizers,
            owned=live.owned(),
        )

    @property
    def _device(self) -> torch.device:
        assert self._live is not None  # set in `start`
        return self._live.device

    def _pace(self, station: Station, step: int) -> tuple[float, float | None]:
        """Seconds per step so far, and seconds of training whose earnings may be spent by now."""
        done, total = step - self._begun_at, self._total_steps
        per_step = station.budget.training_here / max(done, 1)
        if total is None or total < step or done < STEPS_TO_EXTRAPOLATE:
            return per_step, None
        return per_step, per_step * total * station.schedule.progress(step, total)

    # Showing

    def _show(self, station: Station, values: Mapping[str, Tensor], step: int, *, free: bool) -> None:
        """Scalars to every logger; figures more rarely, and only where the budget has room for them."""
        if not values or rank() != 0:
            return
        with station.showing("cannot be shown by a logger"):
            scalars = scalars_of(station.instrument, values)
            self.latest |= scalars
            for dashboard in self._dashboards:
                dashboard.scalars(scalars, step)
        if step < self._figures_due or not any(d.writer for d in self._dashboards):
            return
        if not free and station.budget.seconds_to_wait(self._figures_cost) > 0:
            return
        started = time.perf_counter()
        with station.showing("cannot be drawn on the dashboard"):
            self._draw(station, values, step)
        self._figures_cost = time.perf_counter() - started
        station.budget.charge_other(self._figures_cost, free=free)
        if station is self.stations[-1]:
            self._figures_due = self._figures.next_after(step)

    def _draw(self, station: Station, values: Mapping[str, Tensor], step: int) -> None:
        if not self._introduced:
            self._introduced = True
            for dashboard in self._dashboards:
                dashboard.introduce([s.instrument for s in self.stations])
        panels = station.instrument.dashboard(values)
        for dashboard in self._dashboards:
            dashboard.show(station.instrument.name, panels, step)

    # The record

    def _open_record(self, directory: Path, step: int, metadata: Mapping[str, Any]) -> None:
        try:
            self.logbook.open(directory, self.stations, step, metadata)
        except Exception as error:  # mostly the disk
            if self.strict:
                raise
            warn(f"nothing of this run is recorded, training goes on: {error}")

    # State that a resumed run needs

    def state_dict(self) -> dict[str, Any]:
        return {
            "record": self.logbook.state_dict(),
            "stations": {station.instrument.name: station.state_dict() for station in self.stations},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.logbook.load_state_dict(state["record"])
        for station in self.stations:
            if station.instrument.name in state["stations"]:
                station.load_state_dict(state["stations"][station.instrument.name])

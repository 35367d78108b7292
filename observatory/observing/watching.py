"""Watching a loop of one's own: bare PyTorch, Fabric, a notebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, IterableDataset

from observatory.looking.probe import Probe, split_batch
from observatory.observing.dashboard import Dashboard
from observatory.observing.instrument import Instrument
from observatory.observing.observer import Observer
from observatory.observing.schedule import Schedule
from observatory.observing.source import ProbeSource

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Examples = (
    Probe | Tensor | Sequence[Any] | DataLoader | Dataset
)  # what a probe can be given as, or drawn from


class Watch:
    """What `watch` returns: a context around a training loop, with the loop's clock.

    Entering takes the first look and leaving the last one; an exception in the loop closes the record as it
    is. `latest` holds the newest scalars by tag, such as "ntk/trace" (on rank 0).
    """

    def __init__(
        self, observer: Observer, model: nn.Module, source: ProbeSource, directory: Path | None, **start: Any
    ) -> None:
        self._observer, self._model, self._source = observer, model, source
        self._directory, self._start = directory, start
        self.updates = 0  # optimizer updates that the weights have seen
        self.epoch = 0  # number of the epoch, counted from 0

    @property
    def latest(self) -> dict[str, float]:
        return dict(self._observer.latest)

    def __enter__(self) -> Watch:
        self._observer.start(
            self._model,
            self._source,
            step=self.updates,
            epoch=self.epoch,
            directory=self._directory,
            **self._start,
        )
        return self

    def step(self) -> None:
        """Call it after every `optimizer.step()`, on every rank."""
        self.updates += 1
        self._observer.after_step(self.updates, self.epoch)

    def end_epoch(self) -> None:
        """Call it at the end of every epoch, on every rank; schedules and windows in epochs need it."""
        self._observer.after_epoch(self.updates, self.epoch)
        self.epoch += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._observer.finish(self.updates, self.epoch)
        finally:
            self._observer.close()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold for `load_state_dict` to continue the record (`weights_only`)."""
        return {"updates": self.updates, "epoch": self.epoch, "observer": self._observer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; before the watch is entered."""
        self.updates, self.epoch = state["updates"], state["epoch"]
        self._observer.load_state_dict(state["observer"])


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] = (),
    *,
    instruments: Sequence[Instrument],
    probe: Examples | None = None,
    out: str | Path | None = None,
    log: Callable[[dict[str, float], int], None] | None = None,
    writer: SummaryWriter | None = None,
    total_steps: int | None = None,
    looks_per_decade: float | None = None,
    every_n_steps: int | None = None,
    every_n_epochs: int | None = None,
    at: Sequence[int] | None = None,
    max_overhead: float | None = 0.05,
    strict: bool = False,
) -> Watch:
    """Watch a loop of one's own, and change nothing about it.

        with observatory.watch(model, optimizer, probe=(x, y), instruments=[...], out="runs/mine") as watch:
            for batch in loader:
                ...
                optimizer.step()
                watch.step()

    With several processes every rank does the same; rank 0 writes.

    Args:
        model: the module in training: bare, compiled, or wrapped by `DistributedDataParallel` or Fabric.
        optimizer: one or several, for instruments that read learning rates.
        instruments: what looks.
        probe: the examples to look at, as a `Probe`, inputs, or a tuple (inputs, targets); or a loader or a
            data set, from which each instrument draws what it asks for. An instrument made with a probe of
            its own keeps it.
        out: folder of the run; the record goes to `<out>/observatory`. None records nothing.
        log: `log(values, step)` gets the scalars, for example `fabric.log_dict`.
        writer: of TensorBoard; gets scalars (unless `log` does), figures and histograms.
        total_steps: updates at the end of the run, where known: looks are then spread evenly.
        looks_per_decade, every_n_steps, every_n_epochs, at: the schedule, one of them; default 12 looks per
            decade (see `Schedule`).
        max_overhead: seconds of observing per second of training; None: no limit.
        strict: let failures raise instead of warning once.

    Raises:
        ValueError: if two instruments have the same name, more than one schedule is given, or `probe` is a
            stream.
    """
    schedule = Schedule(looks_per_decade, every_n_steps, every_n_epochs, at)
    return Watch(
        Observer(instruments, schedule=schedule, max_overhead=max_overhead, strict=strict),
        model,
        source_of(probe),
        None if out is None else Path(out) / "observatory",
        total_steps=total_steps,
        dashboards=[Dashboard(log, writer)] if log is not None or writer is not None else [],
        optimizers=[optimizer] if not isinstance(optimizer, Sequence) else optimizer,
    )


def source_of(probe: Examples | None) -> ProbeSource:
    """Where instruments find their examples, given what a person has at hand.

    Raises:
        ValueError: if it is a batch that does not say which part of it are the inputs, or a stream.
    """
    if isinstance(getattr(probe, "dataset", probe), IterableDataset):
        raise ValueError(
            "a stream has no examples to draw a probe from by their number: give probe=(x, y), for example "
            "its first batch"
        )
    if probe is None or hasattr(probe, "dataset"):  # a loader; Fabric's are none of torch's
        return ProbeSource(lambda _: probe)
    if isinstance(probe, Dataset):
        loader: DataLoader = DataLoader(probe)
        return ProbeSource(lambda _: loader)
    return ProbeSource(lambda _: None, probe if isinstance(probe, Probe) else split_batch(probe))

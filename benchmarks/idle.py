"""What an instrument costs at a step at which it does not look.

    python benchmarks/idle.py

One line per way to attach: microseconds per step and instrument, the minimum over repeats, and beside it the
share of a training step of a small network. The promise is 20 µs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from observatory.callbacks.callback import ObservingCallback
from observatory.looking import Look, Probe
from observatory.observing import Instrument, watch
from observatory.observing.observer import Observer
from observatory.observing.schedule import Schedule
from observatory.observing.source import ProbeSource
from observatory.records import Quantity

STEPS = 2000
NEVER = 10**9


class Silent(Instrument):
    def quantities(self) -> dict[str, Quantity]:
        return {"nothing": Quantity((), "1", "zero")}

    def observe(self, look: Look) -> dict[str, Tensor]:
        return {"nothing": torch.zeros(())}


def silent(count: int) -> list[Instrument]:
    return [Silent(name=f"silent_{k}") for k in range(count)]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


def bare(folder: Path, count: int) -> Callable[[], Any]:
    """`watch.step()` in a loop of one's own."""
    context = watch(
        network(), probe=torch.zeros(2, 8), instruments=silent(count), out=folder, every_n_steps=NEVER
    )
    return context.__enter__().step


def lightning(folder: Path, count: int) -> Callable[[], Any]:
    """The two hooks that run at every step, with a Trainer that is nothing but a clock."""
    callback = ObservingCallback(silent(count), every_n_steps=NEVER)
    module = network()
    callback.observer.start(
        module, ProbeSource(lambda _: None, Probe(torch.zeros(2, 8))), directory=folder, total_steps=NEVER
    )
    trainer: Any = SimpleNamespace(global_step=0, current_epoch=0, callback_metrics={})
    given: Any = module

    def step() -> None:
        if callable(offered := callback.on_train_batch_start):  # as Lightning asks
            offered(trainer, given, None, 0)
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, given, None, None, 0)

    return step


def postponing(folder: Path, count: int) -> Callable[[], Any]:
    """A look is due at every step and the budget is exhausted."""
    observer = Observer(silent(count), schedule=Schedule(every_n_steps=1), max_overhead=1e-9)
    observer.start(network(), ProbeSource(lambda _: None, Probe(torch.zeros(2, 8))), directory=folder)
    for station in observer.stations:
        station.budget.charge_other(1e6)
    clock = SimpleNamespace(step=0)

    def step() -> None:
        clock.step += 1
        observer.after_step(clock.step, 0)

    return step


def seconds_per_step(step: Callable[[], Any], repeats: int = 7) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        best = min(best, (time.perf_counter() - started) / STEPS)
    return best


def microseconds(way: Callable[[Path, int], Callable[[], Any]], count: int) -> float:
    """Per step and instrument, on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds_per_step(way(Path(folder), count)) * 1e6 / count


def training_step() -> Callable[[], Any]:
    model = network()
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(32, 8), torch.arange(32) % 4

    def step() -> None:
        sgd.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        sgd.step()

    return step


def main() -> None:
    torch.set_num_threads(1)
    training = seconds_per_step(training_step()) * 1e6
    print(f"a training step of a small network: {training:.0f} µs")
    for way in (bare, lightning, postponing):
        for count in (1, 5):
            cost = microseconds(way, count)
            print(f"  {way.__name__:10} x {count}: {cost:6.2f} µs each, {cost / training:.4f} of a step")


if __name__ == "__main__":
    main()

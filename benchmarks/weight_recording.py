"""What recording costs: a snapshot of the weights each step, in a bare loop and in Lightning's Trainer.

python benchmarks/weight_recording.py               forty pairs of runs, about two minutes
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.callbacks import WeightFluctuations as RecordedFluctuations
from observatory.looking import Look, ModelFunction, Probe
from observatory.numerics.curvature import ravel
from observatory.numerics.statistics import bootstrap
from observatory.training import MLP, Supervised
from observatory.weights.instrument import WeightFluctuations


def recording(snapshots: int) -> None:
    """A snapshot of the 50 × 50 layer each step, against a checkpoint in memory and against the step
    itself.
    """
    net = nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.randn(50, 784), torch.randint(10, (50,))
    model, probe = ModelFunction.of(net, select=r"^2\.weight"), Probe(())
    looks = [Look(model, probe, step, 0, optimizers=(optimizer,)) for step in range(snapshots)]

    def train() -> None:
        for _ in range(snapshots):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()

    def snap() -> None:
        one = WeightFluctuations(window=(0, snapshots))
        for look in looks:
            one.sample(look)

    step, own = (seconds / snapshots * 1e6 for seconds in _least(train, snap))
    print(f"recording {ravel(model.theta).numel()} weights: {own:.1f} µs; bare training step {step:.0f} µs "
          f"({own / step:.1%})")  # fmt: skip


class _Clock(pl.Callback):
    """Processor time of a step, between two steps of a run: a busy machine hardly changes it."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.seconds = first, last, math.nan

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.first:
            self.seconds = -time.process_time()
        elif trainer.global_step == self.last:
            self.seconds = (self.seconds + time.process_time()) / (self.last - self.first)


def recording_in_a_trainer(steps: int, pairs: int) -> None:
    """The setting of Feng and Tu in Lightning's Trainer: pairs of short runs, with and without, in turns."""
    x, y = torch.randn(50 * (steps + 1), 784), torch.randint(10, (50 * (steps + 1),))
    loader = DataLoader(TensorDataset(x, y), 50)

    def run(recorded: bool) -> tuple[float, Tensor]:
        own = RecordedFluctuations(window=(0, steps + 1), select=r"\.3\.weight$", directions=4, at=[0])
        clock = _Clock(steps // 10, steps)
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tempfile.mkdtemp(),
            callbacks=[own, clock] if recorded else [clock],
        )  # fmt: skip
        torch.manual_seed(0)
        module = Supervised(MLP([784, 50, 50, 10]), optimizer=partial(torch.optim.SGD, lr=0.1))
        trainer.fit(module, loader)
        return clock.seconds * 1e6, ravel(dict(module.named_parameters())).detach()

    without, differences, equal = [], [], True
    for k in range(pairs + 1):
        first, second = run(k % 2 == 0), run(k % 2 == 1)
        plain, own = (second, first) if k % 2 == 0 else (first, second)
        equal &= torch.equal(plain[1], own[1])
        if k:  # the first pair warms up
            without.append(plain[0])
            differences.append(own[0] - plain[0])
    step = torch.tensor(without).median()
    found = bootstrap(
        torch.tensor(differences) / step,
        lambda d: d.median(-1).values,
        generator=torch.Generator().manual_seed(0),
    )
    print(
        f"a step in the Trainer takes {step:.0f} µs of processor time; recording every step adds "
        f"{found.estimate:+.1%} (median of {pairs} pairs of {steps} steps, 95 % {found.low:+.1%} to "
        f"{found.high:+.1%}); weights afterwards {'bit-identical' if equal else 'DIFFERENT'}"
    )


def _least(*works: Callable[[], None]) -> list[float]:
    """Shortest processor times of five rounds."""
    spent = []
    for _ in range(5):
        for work in works:
            start = time.process_time()
            work()
            spent.append(time.process_time() - start)
    return [min(spent[k :: len(works)]) for k in range(len(works))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=40, help="of runs in the Trainer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    recording(1000)
    recording_in_a_trainer(600, options.pairs)


if __name__ == "__main__":
    main()

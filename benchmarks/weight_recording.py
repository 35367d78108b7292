"""What recording costs: a snapshot of the weights each step, in a bare loop and in Lightning's Trainer.

python benchmarks/weight_recording.py               two hundred pairs of blocks of steps, about a minute
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
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.callbacks import WeightFluctuations as RecordedFluctuations
from observatory.looking import Look, ModelFunction, Probe
from observatory.numerics.curvature import ravel
from observatory.numerics.statistics import bootstrap
from observatory.training import MLP, Supervised
from observatory.weights.instrument import WeightFluctuations

BLOCK = 20  # steps
PAIRS_OF_A_RUN = 20  # of blocks


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


class _InTurns(Supervised):
    """Takes the callback out of the Trainer and puts it back, a block of steps after the other.

    Neighbouring blocks are compared, since over a run the machine's speed changes by more than recording
    costs. Processor time, so that other work on the machine matters little.
    """

    def __init__(self, own: pl.Callback) -> None:
        super().__init__(MLP([784, 50, 50, 10]), optimizer=partial(torch.optim.SGD, lr=0.1))
        self._own, self.blocks = [own], []  # in a list: not a part of the module
        self._started = math.nan

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step % BLOCK == 0:  # between the hooks, which go through the callbacks
            now = time.process_time()
            self.blocks.append((now - self._started) / BLOCK)
            callbacks, (own,) = self.trainer.callbacks, self._own
            if len(self.blocks) % 2 == 0:
                callbacks.remove(own)
            elif own not in callbacks:
                callbacks.insert(0, own)
            self._started = time.process_time()
        return super().training_step(batch, batch_idx)


def recording_in_a_trainer(pairs: int) -> None:
    """The setting of Feng and Tu in Lightning's Trainer, steps with and without the callback in turns."""
    steps = BLOCK * (2 * PAIRS_OF_A_RUN + 1)
    x, y = torch.randn(50 * steps, 784), torch.randint(10, (50 * steps,))
    loader = DataLoader(TensorDataset(x, y), 50)

    def run(module_of: Callable[[], pl.LightningModule], callbacks: list[pl.Callback]) -> pl.LightningModule:
        torch.manual_seed(0)
        module = module_of()
        pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=callbacks,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tempfile.mkdtemp(),
        ).fit(module, loader)  # fmt: skip
        return module

    def recorder() -> pl.Callback:
        return RecordedFluctuations(window=(0, steps + 1), select=r"\.3\.weight$", directions=4, at=[0])

    def plain() -> Supervised:
        return Supervised(MLP([784, 50, 50, 10]), optimizer=partial(torch.optim.SGD, lr=0.1))

    alone, watched = (
        ravel(dict(run(plain, callbacks).named_parameters())).detach() for callbacks in ([], [recorder()])
    )
    without, differences = [], []
    while len(differences) < pairs:
        own = recorder()
        blocks = run(partial(_InTurns, own), [own]).blocks[2:]  # the first warms up; then without, with, ...
        without += blocks[::2]
        differences += [one - other for one, other in zip(blocks[1::2], blocks[::2], strict=False)]
    step = torch.tensor(without).median()
    found = bootstrap(
        torch.tensor(differences) / step,
        lambda d: d.median(-1).values,
        generator=torch.Generator().manual_seed(0),
    )
    same = "bit-identical" if torch.equal(alone, watched) else "DIFFERENT"
    print(
        f"a step in the Trainer takes {1e6 * step:.0f} µs of processor time; recording every step adds "
        f"{found.estimate:+.1%} (median of {len(differences)} pairs of {BLOCK} steps, 95 % {found.low:+.1%} "
        f"to {found.high:+.1%}); weights afterwards {same}"
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
    parser.add_argument("--pairs", type=int, default=200, help="of blocks of steps in the Trainer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    recording(1000)
    recording_in_a_trainer(options.pairs)


if __name__ == "__main__":
    main()

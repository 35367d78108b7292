"""64 networks 10-32-3: one after the other against one stack, on one core.

In the one loop (Lightning's Trainer, data in memory, train/loss logged) and as bare loops; CPU time.
`python benchmarks/ensemble.py`
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import lightning.pytorch as pl
import torch
from torch import Tensor

from observatory.data import Splits, StackedData, TensorData
from observatory.training import MLP, Ensemble, Supervised

MEMBERS, EXAMPLES, BATCH, EPOCHS, REPEATS = 64, 640, 32, 3, 5


class Clusters(TensorData):
    """Three Gaussian clusters in ten dimensions."""

    def splits(self) -> Splits:
        generator = torch.Generator().manual_seed(self.split_seed)
        y = torch.randint(3, (EXAMPLES,), generator=generator)
        x = torch.randn(3, 10, generator=generator)[y] + torch.randn(EXAMPLES, 10, generator=generator)
        return Splits(*3 * [(x, y)])


def runs() -> tuple[list[Supervised], list[TensorData]]:
    members = []
    for k in range(MEMBERS):
        torch.manual_seed(k)
        members.append(Supervised(MLP([10, 32, 3]), optimizer=partial(torch.optim.Adam, lr=1e-3)))
    return members, [Clusters(batch_size=BATCH, seed=k) for k in range(MEMBERS)]


def fit(model: pl.LightningModule, data: pl.LightningDataModule) -> None:
    pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    ).fit(model, data)


def in_the_loop_apart(members: list[Supervised], data: list[TensorData]) -> list[Supervised]:
    for member, own in zip(members, data, strict=True):
        fit(member, own)
    return members


def in_the_loop_stacked(members: list[Supervised], data: list[TensorData]) -> list[Supervised]:
    ensemble = Ensemble(members)
    fit(ensemble, StackedData(data))
    return ensemble.members()


def bare_apart(members: list[Supervised], batches: Sequence[tuple[Tensor, Tensor]]) -> list[Supervised]:
    for k, member in enumerate(members):
        optimizer = member.configure_optimizers()
        for x, y in batches:
            optimizer.zero_grad()
            member.loss(member.network(x[k]), y[k]).backward()
            optimizer.step()
    return members


def bare_stacked(members: list[Supervised], batches: Sequence[tuple[Tensor, Tensor]]) -> list[Supervised]:
    ensemble = Ensemble(members)
    optimizer = ensemble.configure_optimizers()
    for x, y in batches:
        optimizer.zero_grad()
        ensemble.batch_losses(x, y).sum().backward()
        optimizer.step()
    return ensemble.members()


def timed(act: Callable[[], list[Supervised]]) -> tuple[float, list[Supervised]]:
    started = time.process_time()
    trained = act()
    return time.process_time() - started, trained


def farthest(some: list[Supervised], others: list[Supervised]) -> float:
    pairs = zip(some, others, strict=True)
    return max(
        (p - q).abs().max().item()
        for a, b in pairs
        for p, q in zip(a.parameters(), b.parameters(), strict=True)
    )


def compare(
    name: str, apart: Callable[[], list[Supervised]], stacked: Callable[[], list[Supervised]]
) -> None:
    slow, fast, distance = [], [], 0.0
    for _ in range(REPEATS):  # side by side: whatever else the machine does happens to both
        (a, alone), (b, together) = timed(apart), timed(stacked)
        slow.append(a)
        fast.append(b)
        distance = max(distance, farthest(alone, together))
    ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
    per_step = [1e3 * statistics.median(seconds) * BATCH / (EPOCHS * EXAMPLES) for seconds in (slow, fast)]
    print(
        f"{name:10s} {per_step[0]:6.1f} ms apart, {per_step[1]:5.2f} ms stacked per step of all {MEMBERS}: "
        f"{ratio:4.1f} x faster, weights equal to {distance:.0e}"
    )


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    compare("one loop", lambda: in_the_loop_apart(*runs()), lambda: in_the_loop_stacked(*runs()))
    loader = StackedData(runs()[1])
    loader.setup("fit")
    batches = [batch for _ in range(EPOCHS) for batch in loader.train_dataloader()]
    compare("bare loop", lambda: bare_apart(runs()[0], batches), lambda: bare_stacked(runs()[0], batches))


if __name__ == "__main__":
    main()

"""Small runs of the one loop; as a script, it runs them to their deaths in processes of their own.

Every checkpoint that a run writes is kept. `python kill_and_resume.py FOLDER STEP NAME...` trains each named
run in a forked process that sends itself SIGKILL in the middle of update STEP.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from observatory.data import Digits, StackedData, Steps
from observatory.training import MLP, Ensemble, Fit, Iterate, SeedEveryStep, Supervised


class NoisyOscillator(nn.Module):
    """ẍ = -k x observed with noise; the noise is drawn in the training step."""

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.ones(64))

    def training_loss(self, batch: list[Tensor]) -> Tensor:
        x = batch[0]
        return (self.stiffness * x + x + 0.1 * torch.randn_like(x)).square().mean()

    def validation_metrics(self, batch: list[Tensor]) -> dict[str, Tensor]:
        return {"stiffness": self.stiffness.mean()}


class RandomWalk(nn.Module):
    """No gradient: a walker whose steps are drawn from the global stream, and how often it was where."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("position", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("visits", torch.zeros(21, dtype=torch.int64))

    def advance(self, batch: list[Tensor]) -> dict[str, Tensor]:
        self.position += torch.randn(3, dtype=torch.float64)
        self.visits[int(self.position[0].round().clamp(-10, 10)) + 10] += 1
        return {"distance": self.position.norm()}


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


def rate(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def supervised(workers: int = 0) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    network = MLP([64, 32, 10], dropout=0.5)
    data = Digits(flat=True, batch_size=64, subset=500, num_workers=workers)  # 8 batches, the last of 52
    return Supervised(network, optimizer=adam, scheduler=rate, interval="step"), data


def ensemble() -> tuple[pl.LightningModule, pl.LightningDataModule]:
    members = [
        Supervised(MLP([64, 8, 10]), optimizer=partial(torch.optim.Adam, lr=lr), scheduler=rate)
        for lr in (1e-2, 3e-3, 1e-3)
    ]
    return Ensemble(members), StackedData([Digits(flat=True, subset=500, seed=k) for k in range(3)])


RUNS: dict[str, Callable[[], tuple[pl.LightningModule, pl.LightningDataModule]]] = {
    "supervised": supervised,
    "supervised with workers": lambda: supervised(workers=2),
    "fit": lambda: (Fit(NoisyOscillator(), adam), Digits(flat=True, subset=500)),
    "ensemble": ensemble,
    "iterate": lambda: (Iterate(RandomWalk()), Steps(8)),
}


class Death(pl.Callback):
    """SIGKILL to the own process, before the weights of update `step` are stored."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    name: str, folder: Path, *callbacks: pl.Callback, resume: Path | None = None, **options: Any
) -> pl.Trainer:
    """Three epochs of eight batches; the state at the end is the trainer's."""
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    torch.manual_seed(0)
    model, data = RUNS[name]()
    if resume is not None:
        torch.manual_seed(99)  # a resumed process is in another state
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SeedEveryStep(7), keep, *callbacks],
        **({"max_epochs": 3} | options),
    )
    trainer.fit(model, data, ckpt_path=resume)
    return trainer


def main(folder: str, step: str, *names: str) -> None:
    import sklearn.datasets  # noqa: F401  once, before the fork; computing anything would start threads

    for name in names:
        child = os.fork()
        if child == 0:
            run(name, Path(folder) / name, Death(int(step)))
            os._exit(0)  # not reached
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            raise SystemExit(f"{name} was not killed: status {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])

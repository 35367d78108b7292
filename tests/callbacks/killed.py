"""A watched run that is killed again and again: `python killed.py FOLDER SECONDS...`.

Each number is how long the run is left alone before SIGKILL; every attempt resumes from the last checkpoint.
The last attempt is not killed. Attempts are forked, so that Python and PyTorch are imported once.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from observatory.callbacks import CollectiveVariables
from observatory.data import Digits
from observatory.records import open_run
from observatory.training import ConvNet, SeedEveryStep, Supervised


def train(folder: Path) -> None:
    """Train to 120 updates, from the newest checkpoint if there is one."""
    torch.set_num_threads(1)
    pl.seed_everything(3, verbose=False)
    checkpoints = sorted(
        (folder / "checkpoints").glob("*.ckpt"), key=lambda file: int(file.stem.split("=")[1])
    )
    trainer = pl.Trainer(
        max_steps=120,
        accelerator="cpu",
        default_root_dir=folder,
        logger=pl.loggers.CSVLogger(folder, "run", version=0),
        callbacks=[
            CollectiveVariables(every_n_steps=2, max_overhead=None, probe=8, strict=True),
            SeedEveryStep(3),
            ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=7, save_top_k=-1),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    network = ConvNet(image=[1, 8, 8], channels=[4, 8], classes=10, dropout=0.2)
    newest = checkpoints[-1] if checkpoints else None
    data = Digits(batch_size=16, subset=300)
    trainer.fit(Supervised(network), data, ckpt_path=newest, weights_only=True if newest else None)


def attempt(folder: Path, seconds: float | None) -> None:
    child = os.fork()
    if child == 0:
        train(folder)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    record = folder / "run/version_0/observatory"
    if (record / "run.json").exists():  # always readable
        run = open_run(record)
        print({name: len(run[name]) for name in run if name == "ntk/entropy"}, flush=True)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for patience in [*map(float, sys.argv[2:]), None]:
        attempt(root, patience)

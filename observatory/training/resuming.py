"""Random streams that a resumed run finds again."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


def seed_streams(*key: int) -> None:
    """Begin the global streams of torch (all devices), numpy and Python anew, as a function of `key`."""
    torch_seed, other_seed = np.random.SeedSequence(key).generate_state(2, np.uint64)
    if torch.accelerator.is_available():
        torch.manual_seed(int(torch_seed))
    else:  # the same for the CPU, in 1 µs instead of 100
        torch.default_generator.manual_seed(int(torch_seed))
    np.random.seed(int(other_seed) % 2**32)
    random.seed(int(other_seed))


class SeedEveryStep(Callback):
    """Before each training batch, seed all streams with (seed, rank, updates so far, batch of the epoch).

    Dropout, noise and whatever else draws in a training step then depend on nothing that happened before:
    a run resumed in mid-epoch draws what the uninterrupted one drew, and nobody's extra draws change a run.
    The order of the data is the loader's part (`observatory.data.training_loader`).

    Args:
        seed: default the one of `seed_everything`, else 0. A resumed run keeps the seed of its checkpoint.
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and seed < 0:
            raise ValueError(f"a seed is a non-negative integer, got {seed}")
        self.seed = seed

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self.seed is not None  # since `setup`
        seed_streams(self.seed, trainer.global_rank, trainer.global_step, batch_idx)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = state_dict["seed"]

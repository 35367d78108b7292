"""Where a killed run goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


class Bookmark(Callback):
    """Saves a checkpoint every few seconds, after a step, each replacing the one before.

    Never after the last step: a run that was killed while it ended ends once more, so that instruments take
    their last look and every metric is known. In the middle of an epoch only where the training loader can go
    on from there (`observatory.data.training_loader`).

    Args:
        file: of the checkpoint.
    """

    seconds = 10.0  # of training that a kill may cost

    def __init__(self, file: Path) -> None:
        self.file = file
        self._step, self._saved = -1, 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self._saved = trainer.global_step, time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        updated, self._step = trainer.global_step != self._step, trainer.global_step
        if updated and _can_go_on(trainer.train_dataloader):
            self._save(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        due = time.monotonic() - self._saved >= self.seconds
        if trainer.global_step < trainer.estimated_stepping_batches and trainer.strategy.broadcast(due):
            trainer.save_checkpoint(self.file, weights_only=False)
            self._saved = time.monotonic()


def _can_go_on(loader: Any) -> bool:
    return hasattr(loader, "load_state_dict")

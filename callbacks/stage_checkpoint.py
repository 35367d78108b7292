"""A checkpoint at each change of the stage of learning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

KINDS = {-1: "compression", 0: "plateau", 1: "structure"}


class StageCheckpoint(Callback):
    """Saves a checkpoint when `CollectiveVariables` recognises a new stage of learning.

    Checkpoints are `stage-compression-step=120.ckpt` and the like, named for the stage that has begun
    and the step at which it was noticed.

    With several processes each step waits for the first one to say whether there is something to save.

    Args:
        quantity: what is followed: the stage in `trainer.callback_metrics`.
        folder: where checkpoints go; default `checkpoints` in the log directory.
    """

    def __init__(self, quantity: str = "ntk/stage", folder: str | Path | None = None) -> None:
        self.quantity, self.folder = quantity, folder
        self.stage: int | None = None  # the last one seen

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        value = float(trainer.callback_metrics.get(self.quantity, math.nan))
        stage = self.stage if math.isnan(value) else int(value)
        if trainer.world_size > 1:  # only the first process has the values of a look
            stage = trainer.strategy.broadcast(stage)
        if stage is None or stage == self.stage:
            return
        self.stage = stage
        folder = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints")
        trainer.save_checkpoint(folder / f"stage-{KINDS[self.stage]}-step={trainer.global_step}.ckpt")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stage = state_dict["stage"]

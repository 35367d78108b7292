"""Lightning runs that save after every update, before the observatory's turn, and are killed about a look.

`python doomed_savers.py FOLDER` plays each scene in FOLDER/SCENE: an attempt that is killed, and one that
resumes from the newest checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from doomed import Accident, Interrupted, end, play
from runs import Classifier, bits, examples, loaders, trainer
from scenes import Outputs

from observatory.callbacks.callback import ObservingCallback
from observatory.data import training_loader
from observatory.training import SeedEveryStep

EPOCHS, UPDATES = 3, 36  # 96 examples in batches of 8
SCHEDULES: dict[str, dict[str, Any]] = {"steps": {"every_n_steps": 1}, "epochs": {"every_n_epochs": 1}}


class Freezing(Classifier):
    """Freezes at every batch: Lightning leaves out `on_train_epoch_start` where an epoch is resumed."""

    def on_train_batch_start(self, *_: Any) -> None:
        self.frozen.eval()


class Saves(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / "partial.ckpt")
        (self.folder / "partial.ckpt").replace(self.folder / "newest.ckpt")


class Kills(pl.Callback):
    """SIGKILL after so many updates, the first time; or at the end of their epoch."""

    def __init__(self, step: int, marker: Path, *, epoch: bool = False) -> None:
        self.step, self.marker, self.epoch = step, marker, epoch

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not self.epoch:
            self._kill(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.epoch:
            self._kill(trainer)

    def _kill(self, trainer: pl.Trainer) -> None:
        if trainer.global_step == self.step and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def killed(schedule: str, where: str, step: int) -> Accident:
    """`where`: before the look at `step`, in it, behind it, or never."""

    def run(folder: Path) -> None:
        marker, newest = folder / "marker", folder / "newest.ckpt"
        instrument = Interrupted(signal.SIGKILL, marker, step) if where == "in" else Outputs()
        observing = ObservingCallback([instrument], max_overhead=None, strict=True, **SCHEDULES[schedule])
        before = [Kills(step, marker)] if where == "before" else []
        behind = [Kills(step, marker, epoch=schedule == "epochs")] if where == "behind" else []
        callbacks = [Saves(folder), *before, observing, *behind, SeedEveryStep(3)]
        pl.seed_everything(77 if newest.exists() else 5, verbose=False)
        module = Freezing("sgd")
        resume = newest if newest.exists() else None
        trainer(folder, callbacks, max_epochs=EPOCHS).fit(
            module, training_loader(examples(), 8, seed=1), loaders()[1], ckpt_path=resume,
            weights_only=True if resume else None,
        )  # fmt: skip
        end(folder, bits(module.state_dict()))

    return run


SCENES = {
    f"{schedule}_{where}_{step}": (killed(schedule, where, step), 1 if where == "never" else 2)
    for schedule, places in {
        "steps": [
            ("never", 0),
            ("before", 5),
            ("in", 5),
            ("behind", 5),
            ("before", 12),
            ("in", 12),
            ("behind", 12),
        ],
        "epochs": [("never", 0), ("before", 12), ("in", 12), ("behind", 12), ("before", 17)],
    }.items()
    for where, step in places
}

if __name__ == "__main__":
    play(SCENES, Path(sys.argv[1]))

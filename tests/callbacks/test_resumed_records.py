"""Interrupted in mid-epoch and resumed through `ckpt_path`: nobody can tell from weights or record."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
from everything import every_instrument
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import Classifier, bits, examples, loaders, trainer

from observatory.data import training_loader
from observatory.records import Run, open_run
from observatory.training import SeedEveryStep

pytestmark = [
    # the resumed run has no need to save again
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker"),  # on a single core
]


class Frozen(Classifier):
    """Freezes at every batch: Lightning leaves out `on_train_epoch_start` where an epoch is resumed."""

    def on_train_batch_start(self, *_) -> None:
        self.frozen.eval()


def run(
    folder: Path, *, steps: int, workers: int, save: int | None = None, resume: Path | None = None
) -> list:
    pl.seed_everything(5 if resume is None else 77, verbose=False)  # a resumed process begins elsewhere
    callbacks = [*every_instrument(), SeedEveryStep(3)]
    if save is not None:
        callbacks.append(ModelCheckpoint(folder, "{step}", every_n_train_steps=save, save_top_k=-1))
    module = Frozen()  # dropout and batch norm
    one = trainer(folder, callbacks, max_epochs=-1, max_steps=steps, enable_checkpointing=save is not None)
    loader = training_loader(examples(), 8, seed=1, num_workers=workers)  # 12 updates per epoch
    one.fit(module, loader, loaders()[1], ckpt_path=resume, weights_only=True if resume else None)
    return bits([module.state_dict(), one.optimizers[0].state_dict()])


def assert_same(one: Run, other: Run) -> None:
    assert list(one) == list(other) and len(one) > 20
    for quantity in one:
        assert other[quantity].steps.tolist() == one[quantity].steps.tolist(), quantity
        np.testing.assert_array_equal(
            other[quantity].values, one[quantity].values, quantity
        )  # NaN equals NaN


# inside a window of samples, at its end, and behind it
@pytest.mark.parametrize("workers, at", [(0, 5), (0, 7), (2, 17)])
def test_resumed_run_and_record_are_those_of_the_uninterrupted_one(tmp_path, workers, at):
    whole = run(tmp_path / "whole", steps=30, workers=workers)
    run(tmp_path / "parts", steps=at + 3, workers=workers, save=at)
    resumed = run(tmp_path / "parts", steps=30, workers=workers, resume=tmp_path / f"parts/step={at}.ckpt")
    assert resumed == whole
    assert_same(
        open_run(tmp_path / "whole/observatory/run_0"), open_run(tmp_path / "parts/observatory/run_1")
    )

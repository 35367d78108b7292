"""Interrupted in mid-epoch and resumed through `ckpt_path`: nobody can tell from weights or record."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
from everything import EVERY_STEP, every_instrument
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import Classifier, bits, examples, loaders, trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from observatory import ntk
from observatory.callbacks import CollectiveVariables
from observatory.callbacks.callback import ObservingCallback
from observatory.data import training_loader
from observatory.looking import Look, Probe
from observatory.observing import Instrument
from observatory.records import Quantity, Run, open_run
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
@pytest.mark.parametrize("workers, at", [(0, 5), pytest.param(0, 7, marks=pytest.mark.slow), (2, 17)])
def test_resumed_run_and_record_are_those_of_the_uninterrupted_one(tmp_path, workers, at):
    whole = run(tmp_path / "whole", steps=30, workers=workers)
    run(tmp_path / "parts", steps=at + 3, workers=workers, save=at)
    resumed = run(tmp_path / "parts", steps=30, workers=workers, resume=tmp_path / f"parts/step={at}.ckpt")
    assert resumed == whole
    assert_same(
        open_run(tmp_path / "whole/observatory/run_0"), open_run(tmp_path / "parts/observatory/run_1")
    )


class Answers(Instrument):
    default_name = "answers"

    def quantities(self) -> dict[str, Quantity]:
        return {"mean": Quantity((), "1", ""), "outputs": Quantity(("example", "class"), "1", "")}

    def observe(self, look: Look) -> dict[str, Tensor]:
        outputs = look.model(look.probe.inputs)
        return {"mean": outputs.mean(), "outputs": outputs}


@pytest.mark.parametrize(
    "make, reason",
    [
        (Answers, r"'answers' is not recorded any more.*outputs.npy holds .*shape \(12, 3\), not of "
                  r".*shape \(9, 3\): a changed shape cannot continue a record"),
        (ntk.CollectiveVariables, r"'ntk' is switched off.*kernels of shapes \(9, 9\) and \(12, 12\)"),
    ],
)  # fmt: skip
def test_changed_shape_ends_the_record_of_a_resumed_run_and_not_the_run(tmp_path, make, reason):
    def part(size: int, steps: int, resume: Path | None = None) -> Run:
        callbacks = [ObservingCallback([make(probe=size)], every_n_steps=1, max_overhead=None)]
        if resume is None:
            callbacks.append(ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1))
        one = trainer(tmp_path, callbacks, enable_checkpointing=resume is None, max_steps=steps)
        one.fit(Frozen(), *loaders(), ckpt_path=resume, weights_only=True if resume else None)
        assert one.global_step == steps
        return open_run(tmp_path / f"observatory/run_{int(resume is not None)}")

    part(12, 8)
    with pytest.warns(UserWarning) as caught:
        run = part(9, 10, tmp_path / "step=6.ckpt")
    (said,) = [str(one.message) for one in caught if "training goes on" in str(one.message)]
    assert re.search(reason, said), said
    assert all(run[quantity].steps.tolist() == list(range(7)) for quantity in run)


class Stream(IterableDataset):
    """Of which every process sees another part."""

    def __init__(self, part: int) -> None:
        self.part = part

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = examples().tensors
        return zip(x.roll(8 * self.part, 0), y.roll(8 * self.part, 0), strict=True)


def streamed(folder: Path, part: int, *, probe: int, resume: Path | None = None, **steps: int) -> Run:
    callbacks = [CollectiveVariables(probe=probe, **EVERY_STEP)]
    if resume is None:
        callbacks.append(ModelCheckpoint(folder, "{step}", every_n_train_steps=6, save_top_k=-1))
    one = trainer(folder, callbacks, max_epochs=-1, enable_checkpointing=resume is None, **steps)
    data = DataLoader(Stream(part), 8), loaders()[1]
    one.fit(Frozen(), *data, ckpt_path=resume, weights_only=True if resume else None)
    return open_run(folder / f"observatory/run_{part}")


def test_resumed_run_looks_at_the_probe_that_its_stream_has_no_more(tmp_path):
    first = streamed(tmp_path, 0, probe=12, max_steps=8)
    second = streamed(tmp_path, 1, probe=12, resume=tmp_path / "step=6.ckpt", max_steps=10)
    # two batches of 8 have passed by after the second update
    assert second["ntk/trace"].steps.tolist() == list(range(2, 11))
    kept = [Probe.load(run.directory / "ntk/probe.npz") for run in (first, second)]
    assert kept[0].digest() == kept[1].digest()
    np.testing.assert_array_equal(kept[1].inputs, examples().tensors[0][:12])
    np.testing.assert_array_equal(second["ntk/kernel"].values[:5], first["ntk/kernel"].values[:5])


def test_run_resumed_before_its_stream_had_brought_enough_examples_begins_to_look_later(tmp_path):
    with pytest.raises(ValueError, match="60 examples of the stream of train data, of which 48 passed by"):
        streamed(tmp_path, 0, probe=60, max_steps=6)
    second = streamed(tmp_path, 1, probe=60, resume=tmp_path / "step=6.ckpt", max_steps=20)
    assert second["ntk/trace"].steps.tolist() == list(range(14, 21))

"""What every callback must keep to. A callback inherits these tests by naming itself:

class TestCollectiveVariables(CallbackContract):
    make = CollectiveVariables

What it needs to be at work in a run of a dozen updates stands in `everything.SMALL`. Through that file it
also takes part in the runs with every instrument: bit identity and resuming.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from everything import EVERY_STEP, SMALL
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matrix import MATRIX, options
from runs import Classifier, Snapshot, fit, loaders, trainer

from observatory.callbacks.configured import callbacks_from_yaml
from observatory.records import open_run

UNDISTURBED: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 3},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "compiled in place": {},
}


class CallbackContract:
    """Inherit and set `make`, a callback class or a function of its keyword arguments.

    Where it looks at a kind of model of its own, `module` is a `Classifier` that also has one.
    """

    make: Callable[..., pl.Callback]
    module: type[Classifier] = Classifier

    def fit(self, root: Path, callbacks: Sequence[pl.Callback] = (), **options: Any) -> Snapshot:
        return fit(root, callbacks, **({"module": self.module} | options))

    def build(self, **kwargs: Any) -> pl.Callback:
        make = type(self).make
        return make(**(SMALL.get(getattr(make, "__name__", ""), {}) | kwargs))

    def record(self, root: Path, name: str | None = None) -> Any:
        run = open_run(root / "observatory" / "run_0")
        return run.instrument(name or self.name())

    def name(self) -> str:
        return self.build().observer.stations[0].instrument.name

    def assert_equal_records(self, one: Any, other: Any) -> None:
        assert list(one) == list(other) and list(one)
        for quantity in one:
            assert one[quantity].steps.tolist() == other[quantity].steps.tolist(), quantity
            np.testing.assert_array_equal(one[quantity].values, other[quantity].values, quantity)

    @pytest.mark.parametrize("case", UNDISTURBED)
    def test_run_is_bit_identical_with_and_without(self, tmp_path, case):
        module = partial(self.module, compile=case == "compiled in place")
        kwargs = UNDISTURBED[case] | {"module": module}
        plain = self.fit(tmp_path / "without", **kwargs)
        watched = self.fit(tmp_path / "with", [self.build(**EVERY_STEP)], **kwargs)
        watched.assert_same(plain)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @pytest.mark.parametrize("cell", MATRIX, ids=" · ".join)
    def test_every_run_is_bit_identical_with_and_without(self, tmp_path, cell):
        kwargs = options(cell, "aot_eager", self.module)
        torch._dynamo.reset()
        plain = self.fit(tmp_path / "without", **kwargs)
        torch._dynamo.reset()
        self.fit(tmp_path / "with", [self.build(**EVERY_STEP)], **kwargs).assert_same(plain)
        looks = self.looked_at(self.record(tmp_path / "with"))
        assert looks and all(len(looks[q]) >= 9 for q in looks)

    @staticmethod
    def looked_at(record: Any) -> dict[str, Any]:
        """What is recorded on a schedule; conclusions and quantities without a value at first are not."""
        return {q: record[q] for q in record if record[q].steps[0] == 0}

    def test_looks_once_per_update_under_accumulation(self, tmp_path):
        self.fit(tmp_path, [self.build(**EVERY_STEP)], accumulate_grad_batches=3)
        record = self.record(tmp_path)
        looks = self.looked_at(record)
        assert looks and all(looks[q].steps.tolist() == list(range(9)) for q in looks)
        assert all((np.diff(record[q].steps) > 0).all() for q in record)

    def test_sanity_check_and_fast_dev_run_leave_no_trace(self, tmp_path):
        self.fit(tmp_path, [self.build(**EVERY_STEP)], fast_dev_run=True)
        assert not (tmp_path / "observatory").exists()

    def test_interrupted_and_resumed_record_equals_the_uninterrupted_one(self, tmp_path):
        whole = self.build(**EVERY_STEP)
        self.fit(tmp_path / "whole", [whole], max_steps=20, max_epochs=-1)
        checkpoint = tmp_path / "at12.ckpt"
        self.fit(
            tmp_path / "parts",
            [self.build(**EVERY_STEP), SaveAt(12, checkpoint)],
            max_steps=15,
            max_epochs=-1,
        )
        self.fit(
            tmp_path / "parts", [self.build(**EVERY_STEP)], max_steps=20, max_epochs=-1, ckpt_path=checkpoint
        )
        one, other = (
            self.record(tmp_path / "whole"),
            open_run(tmp_path / "parts/observatory/run_1").instrument(self.name()),
        )
        for quantity in one:
            assert other[quantity].steps.tolist() == one[quantity].steps.tolist()
            # Lightning re-draws the shuffle on resuming: only what came before the checkpoint must agree
            np.testing.assert_array_equal(other[quantity].values[:13], one[quantity].values[:13])

    def test_nan_weights_are_recorded_as_nan(self, tmp_path):
        self.fit(tmp_path, [self.build(**EVERY_STEP)], module=partial(self.module, nan_from=5))
        record = self.record(tmp_path)
        floating = [q for q in record if np.issubdtype(record[q].values.dtype, np.floating)]
        assert any(np.isnan(record[q].values[-1]).any() for q in floating)
        looks = self.looked_at(record)
        assert looks and all(looks[q].steps.tolist() == list(range(25)) for q in looks)

    def test_two_loggers_get_the_scalars(self, tmp_path):
        loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tb")]
        self.fit(tmp_path, [self.build(**EVERY_STEP)], logger=loggers, max_steps=4)
        header = (tmp_path / "csv/version_0/metrics.csv").read_text().split("\n")[0].split(",")
        assert any(key.startswith(f"{self.name()}/") for key in header)
        assert (tmp_path / "csv/version_0/observatory" / self.name()).is_dir()

    def test_callback_is_picklable(self):
        copy = pickle.loads(pickle.dumps(self.build(every_n_steps=3)))
        assert copy.state_key == self.build(every_n_steps=7).state_key

    def test_state_holds_only_what_a_checkpoint_may_hold(self, tmp_path):
        callback = self.build(**EVERY_STEP)
        self.fit(tmp_path, [callback], max_steps=6)
        torch.save(callback.state_dict(), tmp_path / "state.pt")
        callback.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))

    def test_yaml_round_trip(self, tmp_path):
        file = tmp_path / "observe.yaml"
        spec = {
            "class_path": type(self.build()).__name__,
            "init_args": {"every_n_steps": 5, "max_overhead": None},
        }
        file.write_text(yaml.safe_dump({"observe": {"mine": spec}}))
        (callback,) = callbacks_from_yaml(file)
        assert type(callback) is type(self.build())
        station = callback.observer.stations[0]
        assert (station.instrument.name, station.schedule.every_n_steps) == ("mine", 5)
        assert station.budget.max_overhead is None

    def test_validate_alone_does_nothing(self, tmp_path):
        run = trainer(tmp_path, [self.build(**EVERY_STEP)])
        run.validate(self.module(), loaders()[1], verbose=False)
        assert not (tmp_path / "observatory").exists()


class SaveAt(pl.Callback):
    """Save a checkpoint after so many updates, once the other callbacks had their turn."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)

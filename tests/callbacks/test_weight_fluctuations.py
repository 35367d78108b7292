"""The callback of weight fluctuations keeps to the contract, and reads the batches off the loader."""

from __future__ import annotations

import numpy as np
import pytest
from contract import EVERY_STEP, CallbackContract
from runs import Classifier, fit

from observatory.callbacks import WeightFluctuations
from observatory.records import open_run

AT_REST = {"loss", "norm"}  # what is looked at on a schedule; the rest is concluded once


def early(**options):
    """A window short enough for the short runs of the contract."""
    return WeightFluctuations(**({"window": (1, 4), "directions": 3} | options))


class TestWeightFluctuations(CallbackContract):
    make = early

    def test_looks_once_per_update_under_accumulation(self, tmp_path):
        fit(tmp_path, [self.build(**EVERY_STEP)], accumulate_grad_batches=3)
        record = self.record(tmp_path)
        assert all(record[q].steps.tolist() == list(range(9)) for q in AT_REST)
        assert all(record[q].steps.tolist() == [4] for q in record if q not in AT_REST)
        assert record["last_step"].values[0] == 3

    def test_nan_weights_are_recorded_as_nan(self, tmp_path):
        fit(tmp_path, [self.build(**EVERY_STEP)], module=lambda: Classifier(nan_from=2))
        record = self.record(tmp_path)
        assert np.isnan(record["norm"].values[-1]) and np.isnan(record["variance"].values).all()
        assert record["diverged_at"].values[0] == 3  # spoilt after the callbacks had seen step 2


def test_temperatures_need_no_more_than_the_loader(tmp_path):
    options = {"window": (5, 30), "directions": 3, "select": r"net\.4\.weight", **EVERY_STEP}
    plain = {"module": lambda: Classifier("sgd"), "max_steps": 40, "max_epochs": -1}
    fit(tmp_path / "read", [WeightFluctuations(**options)], **plain)
    told = {"batch_size": 8, "samples": 96, "sampling": "without replacement"}
    fit(tmp_path / "told", [WeightFluctuations(**told, **options)], **plain)
    read, said = (
        open_run(tmp_path / name / "observatory/run_0").instrument("weights")["temperature"].values
        for name in ("read", "told")
    )
    assert np.isfinite(read).all()
    np.testing.assert_array_equal(read, said)


@pytest.mark.parametrize("kwargs", [{"gradient_clip_val": 1.0}, {"module": Classifier}])
def test_clipped_gradients_and_other_optimizers_have_no_temperature(tmp_path, kwargs):
    callback = WeightFluctuations(window=(5, 30), directions=3, **EVERY_STEP)
    fit(
        tmp_path,
        [callback],
        **({"module": lambda: Classifier("sgd"), "max_steps": 40, "max_epochs": -1} | kwargs),
    )
    record = open_run(tmp_path / "observatory/run_0").instrument("weights")
    assert np.isnan(record["temperature"].values).all()
    assert np.isfinite(record["variance"].values).all() and np.isfinite(record["flatness"].values[0, 0])

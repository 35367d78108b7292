"""A checkpoint at each change of the stage of learning, and no other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from runs import Classifier, fit

from observatory.callbacks import CollectiveVariables, StageCheckpoint

COURSE = [math.nan] * 3 + [0.0] * 5 + [-1.0] * 9 + [1.0] * 7  # 24 steps


class Staged(Classifier):
    """Logs a course of stages that is given."""

    def on_train_batch_start(self, *_: Any) -> None:
        self.log("ntk/stage", COURSE[self.global_step])


def test_each_new_stage_is_saved_once(tmp_path):
    fit(tmp_path, [StageCheckpoint(folder=tmp_path / "stages")], module=Staged)
    found = sorted(file.name for file in (tmp_path / "stages").iterdir())
    assert found == [
        "stage-compression-step=9.ckpt",
        "stage-plateau-step=4.ckpt",
        "stage-structure-step=18.ckpt",
    ]
    saved = torch.load(tmp_path / "stages" / found[0], weights_only=True)
    assert saved["global_step"] == 9


def test_saving_changes_nothing_about_the_run(tmp_path):
    plain = fit(tmp_path / "plain", module=Staged)
    fit(tmp_path / "saved", [StageCheckpoint(folder=tmp_path / "stages")], module=Staged).assert_same(plain)


def test_resumed_run_does_not_save_the_same_stage_again():
    one, two = StageCheckpoint(), StageCheckpoint()
    one.stage = -1
    two.load_state_dict(one.state_dict())
    assert two.stage == -1


def test_stage_of_the_kernel_reaches_the_metrics(tmp_path):
    """The instrument's stage is what the detector says of the entropies that it recorded."""
    from observatory.ntk.instrument import CODES
    from observatory.ntk.stages_online import StageDetector
    from observatory.records import open_run

    watching = CollectiveVariables(every_n_steps=1, max_overhead=None, keep_kernel=False)
    fit(tmp_path, [watching, StageCheckpoint(folder=tmp_path / "stages")], max_epochs=6)
    run = open_run(tmp_path / "observatory/run_0").instrument("ntk")
    detector, expected = StageDetector(), []
    for step, value in zip(run["entropy"].steps, run["entropy"].values, strict=True):
        detector.update(step, float(value))
        expected.append(math.nan if detector.kind is None else CODES[detector.kind])
    assert run["stage"].values.tolist() == pytest.approx(expected, nan_ok=True)
    changes = sum(b != a for a, b in zip([math.nan, *expected], expected, strict=False) if not math.isnan(b))
    assert changes >= 1 and len(list((tmp_path / "stages").iterdir())) == changes

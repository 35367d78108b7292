"""A run with every instrument on is, bit for bit, the run without: weights, buffers, optimizers, modes,
random streams and metrics, whatever the precision, the compiler and the optimizer.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from everything import every_instrument
from matrix import COMMON, MATRIX, options
from runs import Classifier, Snapshot, examples, fit

from observatory.looking import Probe
from observatory.records import open_run

# the compiler's own, without any callback
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


def assert_undisturbed(tmp_path, looks: int = 9, **kwargs: Any) -> None:
    """Equal with and without; and every instrument did look, without a failure (`strict`)."""
    without, compiled = compiling(tmp_path / "without", **kwargs)
    watched, again = compiling(tmp_path / "with", callbacks=every_instrument(), **kwargs)
    watched.assert_same(without)
    assert again == compiled  # a look that compiled something would change the training's own code
    run = open_run(tmp_path / "with/observatory/run_0")
    assert run.instruments
    for name in run.instruments:
        assert max(len(run[f"{name}/{quantity}"]) for quantity in run.instrument(name)) >= looks


def compiling(root: Path, **kwargs: Any) -> tuple[Snapshot, dict[str, int]]:
    """A run, and how many frames were compiled for it."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return fit(root, **kwargs), dict(torch._dynamo.utils.counters["frames"])


@pytest.mark.parametrize("cell", COMMON, ids=" · ".join)
def test_common_runs_are_bit_identical(tmp_path, cell):
    assert_undisturbed(tmp_path, **options(cell, "aot_eager"))


class Diverges(Classifier):
    """Its weights are infinite after five updates."""

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step >= 5:
            with torch.no_grad():
                self.net[0].weight.fill_(torch.inf)


def test_diverging_run_is_watched_to_its_end(tmp_path):
    assert_undisturbed(tmp_path, looks=25, module=Diverges)


@pytest.mark.filterwarnings("ignore:the loss at the centre is nan, so that no flatness is defined")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_probe_that_is_not_finite_is_looked_at(tmp_path, value):
    x, y = examples(24).tensors
    probe = Probe(torch.where(torch.arange(6) == 2, value, x), y)
    fit(tmp_path, every_instrument(probe=probe), max_epochs=1)
    run = open_run(tmp_path / "observatory/run_0")
    assert len(run.instruments) == len(every_instrument())
    for quantity in ("ntk/entropy", "fisher/trace", "weights/loss"):
        assert run[quantity].steps.tolist() == list(range(13))
        assert np.isnan(run[quantity].values).all(), quantity


@pytest.mark.slow
@pytest.mark.parametrize("cell", MATRIX, ids=" · ".join)
def test_every_run_is_bit_identical(tmp_path, cell):
    if cell[1] != "eager" and shutil.which("c++") is None:
        pytest.skip("inductor needs a C++ compiler")
    assert_undisturbed(tmp_path, **options(cell, "inductor"))

"""A run with every instrument on is, bit for bit, the run without: weights, buffers, optimizers, modes,
random streams and metrics, whatever the precision, the compiler and the optimizer.
"""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from everything import every_instrument
from matrix import COMMON, MATRIX, options
from runs import Snapshot, fit

from observatory.records import open_run

# the compiler's own, without any callback
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def assert_undisturbed(tmp_path, looks: int = 9, **kwargs: Any) -> None:
    """Equal with and without; and every instrument did look, without a failure (`strict`)."""
    torch._dynamo.reset()
    without: Snapshot = fit(tmp_path / "without", **kwargs)
    torch._dynamo.reset()
    extra = kwargs.pop("callbacks", [])
    fit(tmp_path / "with", [*every_instrument(), *extra], **kwargs).assert_same(without)
    run = open_run(tmp_path / "with/observatory/run_0")
    assert run.instruments
    for name in run.instruments:
        assert max(len(run[f"{name}/{quantity}"]) for quantity in run.instrument(name)) >= looks


@pytest.mark.parametrize("cell", COMMON, ids=" · ".join)
def test_common_runs_are_bit_identical(tmp_path, cell):
    assert_undisturbed(tmp_path, **options(cell, "aot_eager"))


@pytest.mark.slow
@pytest.mark.parametrize("cell", MATRIX, ids=" · ".join)
def test_every_run_is_bit_identical(tmp_path, cell):
    if cell[1] != "eager" and shutil.which("c++") is None:
        pytest.skip("inductor needs a C++ compiler")
    assert_undisturbed(tmp_path, **options(cell, "inductor"))

"""A run with every instrument on is, bit for bit, the run without: weights, buffers, optimizers, modes,
random streams and metrics, whatever the precision, the compiler and the optimizer.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from everything import every_instrument
from runs import Classifier, Snapshot, fit

from observatory.records import open_run

# the compiler's own, without any callback
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

TRAINERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate 3": {"accumulate_grad_batches": 3},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "64-true": {"precision": "64-true"},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {"sgd": {}, "adamw": {"gradient_clip_val": 0.5}, "lbfgs": {}}
COMPILERS = ("eager", "torch.compile(net)", "net.compile()")
MATRIX = list(itertools.product(TRAINERS, COMPILERS, OPTIMIZERS))
# each pair of rows, columns and layers of the matrix that a person is likely to meet
COMMON = [
    ("plain", "eager", "lbfgs"),
    ("plain", "torch.compile(net)", "adamw"),
    ("accumulate 3", "net.compile()", "sgd"),
    ("accumulate 3", "eager", "adamw"),
    ("bf16-mixed", "torch.compile(net)", "sgd"),
    ("bf16-true", "eager", "adamw"),
    ("64-true", "net.compile()", "lbfgs"),
]


def classifier(compiler: str, optimizer: str, backend: str) -> Callable[[], pl.LightningModule]:
    def make() -> pl.LightningModule:
        module = Classifier(optimizer=optimizer)
        if compiler == "torch.compile(net)":
            module.net = torch.compile(module.net, backend=backend)
        elif compiler == "net.compile()":
            module.net.compile(backend=backend)
        return module

    return make


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


def assert_cell(tmp_path, cell: tuple[str, str, str], backend: str) -> None:
    trainer, compiler, optimizer = cell
    options = TRAINERS[trainer] | OPTIMIZERS[optimizer]
    assert_undisturbed(tmp_path, module=classifier(compiler, optimizer, backend), **options)


@pytest.mark.parametrize("cell", COMMON, ids=" · ".join)
def test_common_runs_are_bit_identical(tmp_path, cell):
    assert_cell(tmp_path, cell, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("cell", MATRIX, ids=" · ".join)
def test_every_run_is_bit_identical(tmp_path, cell):
    if cell[1] != "eager" and shutil.which("c++") is None:
        pytest.skip("inductor needs a C++ compiler")
    assert_cell(tmp_path, cell, "inductor")

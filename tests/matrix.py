"""Every kind of run that must be, bit for bit, the same with and without instruments."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from runs import Classifier

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


def classifier(
    compiler: str, optimizer: str, backend: str, kind: type[Classifier] = Classifier
) -> Callable[[], pl.LightningModule]:
    def make() -> pl.LightningModule:
        module = kind(optimizer=optimizer)
        if compiler == "torch.compile(net)":
            module.net = torch.compile(module.net, backend=backend)
        elif compiler == "net.compile()":
            module.net.compile(backend=backend)
        return module

    return make


def options(cell: tuple[str, str, str], backend: str, kind: type[Classifier] = Classifier) -> dict[str, Any]:
    """What `runs.fit` is given for a cell (trainer, compiler, optimizer) of the matrix."""
    trainer, compiler, optimizer = cell
    return {
        "module": classifier(compiler, optimizer, backend, kind),
        **TRAINERS[trainer],
        **OPTIMIZERS[optimizer],
    }

"""`kill -9` and resume: the same weights, bit for bit, as if nothing had happened."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import kill_and_resume
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from kill_and_resume import RUNS, run
from torch.utils._pytree import tree_flatten

from observatory.training import SeedEveryStep, seed_streams

# a resumed run continues in the folder of the killed one
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
STEP = 13  # of 24: in the middle of the second epoch


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what runs left behind that died in the middle of update STEP."""
    folder = tmp_path_factory.mktemp("killed")
    script = Path(kill_and_resume.__file__)
    # no pipes: the orphaned worker processes would hold them open for five seconds
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, script, folder, str(STEP), *RUNS], check=True, timeout=60, **quiet)
    return folder


def state(trainer: pl.Trainer) -> Any:
    """Weights, buffers, optimizers, schedules."""
    return tree_flatten(
        (
            dict(trainer.lightning_module.state_dict()),
            [optimizer.state_dict() for optimizer in trainer.optimizers],
            [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        )
    )


def assert_same_bits(one: pl.Trainer, other: pl.Trainer) -> None:
    (a, shape_a), (b, shape_b) = state(one), state(other)
    assert shape_a == shape_b
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    assert one.global_step == other.global_step


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_where_the_uninterrupted_one_does(name: str, killed: Path, tmp_path: Path) -> None:
    uninterrupted = run(name, tmp_path)
    last = killed / name / f"step={STEP - 1}.ckpt"
    assert last.exists() and not (killed / name / f"step={STEP}.ckpt").exists()
    resumed = run(name, killed / name, resume=last)
    assert resumed.global_step == 24
    assert_same_bits(uninterrupted, resumed)


@pytest.fixture(scope="module", params=[{"max_epochs": 3}, {"max_steps": 24}], ids=["epochs", "steps"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return request.param, folder, run("supervised", folder, **request.param)


@pytest.mark.parametrize("step", [1, 7, 8, 9, 15, 16, 23])
def test_every_checkpoint_leads_to_the_same_end(step: int, uninterrupted: Any) -> None:
    length, folder, whole = uninterrupted
    resumed = run("supervised", folder, resume=folder / f"step={step}.ckpt", **length)
    assert_same_bits(whole, resumed)


def test_streams_are_a_function_of_the_key(device: torch.device) -> None:
    def draw(*key: int) -> tuple[float, float, float]:
        seed_streams(*key)
        return torch.rand(1, device=device).item(), np.random.rand(), random.random()

    assert draw(1, 2) == draw(1, 2)
    assert all(a != b for a, b in zip(draw(1, 2), draw(2, 1), strict=True))


def test_micro_batches_of_one_update_draw_different_numbers(tmp_path: Path) -> None:
    draws: list[float] = []

    class Draw(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            draws.append(torch.rand(1).item())

    run("fit", tmp_path, Draw(), accumulate_grad_batches=4, max_epochs=2)
    assert len(set(draws)) == 16


def test_a_resumed_run_keeps_its_seed() -> None:
    callback = SeedEveryStep(3)
    callback.load_state_dict(SeedEveryStep(8).state_dict())
    assert callback.seed == 8
    with pytest.raises(ValueError, match="non-negative integer, got -1"):
        SeedEveryStep(-1)

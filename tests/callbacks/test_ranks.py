"""Two processes that train together leave the record of a single one, and neither waits forever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from everything import every_instrument

from observatory.records import Run, open_run

RANKS = Path(__file__).with_name("ranks.py")
SAME = ("ddp", "ddp_of_4", "fsdp", "loop", "fabric")  # as one process
OTHERS = (
    "all_alone",
    "all_ddp",
    "stages",
    "buffers",
    "tensor_parallel",
    "stream",
    "budgeted",
    "failing",
    "failing_late",
    "no_probe",
    "defaults",
)
STEPS = list(range(0, 13, 2))


class Played:
    """What the scenes left."""

    def __init__(self, folder: Path, *scenes: str) -> None:
        self.folder = folder
        paths = os.pathsep.join([str(RANKS.parent.parent), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-W", "ignore", str(RANKS), str(folder), *scenes]
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        last = done.stdout.strip().split("\n")[-1]
        assert last.startswith("failed:"), done.stderr
        self.failed, self.errors = last.split()[1:], done.stderr

    def record(self, scene: str, number: int = 0) -> Run:
        assert scene not in self.failed, self.errors
        return open_run(self.folder / scene / f"observatory/run_{number}")

    def warnings(self, scene: str) -> list[str]:
        """Of each rank."""
        assert scene not in self.failed, self.errors
        return [(self.folder / scene / f"warnings_{k}").read_text() for k in range(2)]


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Played:
    return Played(tmp_path_factory.mktemp("ranks") / "scenes", "alone", *SAME, *OTHERS)


@pytest.fixture(scope="module")
def played_at_length(tmp_path_factory) -> Played:
    scenes = ("all_alone", "all_fsdp", "all_ddp_of_4", "resumed", "stages_fsdp")
    return Played(tmp_path_factory.mktemp("ranks") / "scenes", *scenes)


def assert_agree(together: Run, alone: Run) -> None:
    assert list(alone) == list(together)
    for quantity in alone:
        assert together[quantity].steps.tolist() == alone[quantity].steps.tolist(), quantity
        one, two = alone[quantity].values, together[quantity].values
        # in double precision; a batch's gradient is the mean of two halves': a few roundings per update
        size = np.nan_to_num(np.abs(one)).max()  # a stage is not known before there are many looks
        np.testing.assert_allclose(two, one, rtol=1e-9, atol=1e-12 * size, err_msg=quantity)


@pytest.mark.parametrize("scene", SAME)
def test_record_of_two_ranks_is_that_of_one_process(played, scene):
    alone, together = played.record("alone"), played.record(scene)
    assert "ntk/kernel" in alone and "norms/gradients" in alone
    assert all(alone[quantity].steps.tolist() == STEPS for quantity in alone)
    assert_agree(together, alone)


def test_every_instrument_sees_on_two_ranks_what_it_sees_in_one_process(played):
    alone = played.record("all_alone")
    assert len(alone.instruments) == len(every_instrument()) and len(alone) > 100
    assert_agree(played.record("all_ddp"), alone)


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["all_fsdp", "all_ddp_of_4"])
def test_every_instrument_sees_on_shards_and_on_four_ranks_what_it_sees_in_one_process(
    played_at_length, scene
):
    assert_agree(played_at_length.record(scene), played_at_length.record("all_alone"))


@pytest.mark.slow
def test_run_of_two_ranks_resumed_in_mid_epoch_ends_as_the_uninterrupted_one(played_at_length):
    """In the weights of each rank, which the scene compares, and in the record, bit for bit."""
    whole, parts, resumed = (played_at_length.record("resumed", k) for k in range(3))
    assert list(whole) == list(resumed) and len(whole) > 100
    assert parts["ntk/trace"].steps.tolist() == list(range(10))
    for quantity in whole:
        assert resumed[quantity].steps.tolist() == whole[quantity].steps.tolist(), quantity
        np.testing.assert_array_equal(resumed[quantity].values, whole[quantity].values, quantity)


@pytest.mark.parametrize(
    "scenes, scene",
    [("played", "stages"), pytest.param("played_at_length", "stages_fsdp", marks=pytest.mark.slow)],
)
def test_each_new_stage_is_saved_once_by_all_ranks_together(request, scenes, scene):
    """Though only the first of them knows of it; the scene compares the weights with a run without."""
    played = request.getfixturevalue(scenes)
    assert scene not in played.failed, played.errors
    saved = sorted(file.name for file in (played.folder / scene / "stages").iterdir())
    assert saved == ["stage-plateau-step=3.ckpt", "stage-structure-step=8.ckpt"]


def test_all_ranks_look_at_the_buffers_of_rank_0_and_change_nobodys(played):
    assert played.record("buffers")["norms/buffers"].steps.tolist() == STEPS  # the scene itself asserts


def test_tensor_parallel_layers_are_looked_at_whole(played):
    assert (
        played.record("tensor_parallel")["norms/squares"].steps.tolist() == STEPS
    )  # the scene itself asserts


def test_probe_of_a_stream_is_made_of_the_batches_of_rank_0(played):
    # 4 examples per rank and batch: 8 have passed by after two updates
    assert played.record("stream")["norms/squares"].steps.tolist() == STEPS[1:]


def test_budget_is_decided_by_the_clock_of_rank_0(played):
    steps = played.record("budgeted")["norms/squares"].steps.tolist()
    assert steps[0] == 0 and steps[-1] == 12


@pytest.mark.parametrize("scene", ["failing", "failing_late"])
def test_instrument_that_fails_on_one_rank_is_switched_off_on_all(played, scene):
    run = played.record(scene)
    assert run["failing/squares"].steps.tolist() == [0, 2]
    assert run["norms/squares"].steps.tolist() == STEPS
    (reason, silence) = played.warnings(scene)
    assert reason == (
        "instrument 'failing' is switched off, training goes on: "
        "rank 1 failed with RuntimeError: the lens of rank 1 is broken"
    )
    assert silence == ""


def test_data_that_cannot_be_read_on_rank_0_stops_nobody(played):
    reason, silence = played.warnings("no_probe")
    assert "'norms' is switched off, training goes on: OSError: the disk with the data is gone" in reason
    assert silence == ""


def test_two_ranks_with_the_defaults_leave_one_record(played):
    assert "defaults" not in played.failed, played.errors
    run = open_run(played.folder / "defaults/run/version_0")
    assert run["ntk/trace"].steps.tolist() == STEPS

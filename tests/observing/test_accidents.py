"""Accidents of a watched run, in processes of their own (`doomed.py`): training goes on as far as it can, a
resumed run ends as if nothing had happened, and its record has every look once, and whole.
"""

from __future__ import annotations

import shutil
import signal

import doomed
import numpy as np
import pytest
from played import Played

from observatory.records import Run, open_run

STEPS = list(range(doomed.UPDATES + 1))
KILLED = [name for name in doomed.SCENES if name.startswith("killed")]


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Played:
    return Played(tmp_path_factory.mktemp("accidents") / "scenes", "doomed.py")


def assert_same(one: Run, other: Run) -> None:
    assert list(one) == list(other) == ["outputs/norm", "outputs/outputs"]
    for quantity in one:
        assert one[quantity].steps.tolist() == STEPS, quantity
        np.testing.assert_array_equal(one[quantity].values, other[quantity].values, quantity)


@pytest.mark.parametrize("scene", KILLED)
def test_killed_inside_a_look_or_an_append_and_resumed(played, scene):
    assert played.attempts(scene) == [-signal.SIGKILL, 0]
    assert played.weights(scene) == played.weights("whole")
    assert_same(played.record(scene), played.record("whole"))
    looks = [e["step"] for e in played.record(scene).events("outputs") if e["event"] == "look"]
    assert looks == STEPS


def test_kills_came_at_every_kind_of_write(played):
    """In headers of files, in records, in counts and in events; before the first checkpoint and after it."""
    resumed = [name for name in KILLED if not list((played.folder / name).glob("observatory.before_*"))]
    assert 2 < len(resumed) < len(KILLED) - 2


def test_full_disk_ends_the_record_with_a_whole_look(played):
    assert played.attempts("disk_full") == [0]
    assert played.weights("disk_full") == played.weights("whole")
    ((said,),) = played.warnings["disk_full"]
    assert "'outputs' is not recorded any more, training goes on: OSError: only" in said
    run, whole = played.record("disk_full"), played.record("whole")
    norm, outputs = run["outputs/norm"], run["outputs/outputs"]
    # 256 bytes of header and 8 + 8 + 4·24 per record of the larger file: (700 - 256) // 112 = 3
    assert norm.steps.tolist() == outputs.steps.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(outputs.values, whole["outputs/outputs"].values[:3])


def test_process_without_file_descriptors_trains_on(played):
    assert played.attempts("too_many_files") == [0]
    assert played.weights("too_many_files") == played.weights("whole")
    ((said,),) = played.warnings["too_many_files"]
    assert "'outputs' is not recorded any more, training goes on: OSError: [Errno 24] Too many open" in said


def test_folder_that_may_not_be_written_to(played):
    assert played.attempts("read_only") == [0]
    assert played.weights("read_only") == played.weights("whole")
    ((said,),) = played.warnings["read_only"]
    assert "nothing of this run is recorded, training goes on: [Errno 13] Permission denied" in said
    place = (played.folder / "read_only/place").resolve()
    assert not list((place / "observatory").iterdir())
    shutil.rmtree(place)


@pytest.mark.parametrize("scene, steps", [("sigint", 5), ("sigterm", 6)])
def test_signal_in_a_look_of_a_lightning_run_that_saves_when_interrupted(played, scene, steps):
    """Ctrl-C leaves the look at once; SIGTERM lets it end, and Lightning stops after the batch."""
    assert played.attempts(scene) == [1, 0]
    first = open_run(played.folder / scene / "observatory/run_0")
    for quantity in first:
        assert first[quantity].steps.tolist() == list(range(steps))
    resumed = open_run(played.folder / scene / "observatory/run_1")
    for quantity in resumed:
        assert resumed[quantity].steps.tolist() == STEPS
        np.testing.assert_array_equal(resumed[quantity].values[:steps], first[quantity].values)
    assert played.warnings[scene] == [[], []]

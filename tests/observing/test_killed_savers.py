"""A checkpoint that is saved before the observatory had its turn, and SIGKILL about a look: none is lost."""

from __future__ import annotations

import signal

import doomed_savers
import numpy as np
import pytest
from played import Played

from observatory.records import Run, open_run

pytestmark = pytest.mark.slow
KILLED = [name for name in doomed_savers.SCENES if "never" not in name]
LOOKS = {"steps": list(range(doomed_savers.UPDATES + 1)), "epochs": [0, 12, 24, 36]}


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Played:
    return Played(tmp_path_factory.mktemp("savers") / "scenes", "doomed_savers.py")


def last_record(played: Played, scene: str) -> Run:
    runs = (played.folder / scene / "observatory").glob("run_*")
    return open_run(max(runs, key=lambda run: run.name))


@pytest.mark.parametrize("scene", KILLED)
def test_killed_run_resumed_from_an_early_checkpoint_lacks_no_look(played, scene):
    schedule, where, step = scene.split("_")
    assert played.attempts(scene) == [-signal.SIGKILL, 0]
    assert played.weights(scene) == played.weights(f"{schedule}_never_0")
    before = open_run(played.folder / scene / "observatory/run_0")
    taken = [k for k in LOOKS[schedule] if k < int(step) or (k == int(step) and where == "behind")]
    assert before["outputs/norm"].steps.tolist() == taken
    whole, resumed = last_record(played, f"{schedule}_never_0"), last_record(played, scene)
    assert list(resumed) == list(whole) == ["outputs/norm", "outputs/outputs"]
    for quantity in whole:
        assert resumed[quantity].steps.tolist() == LOOKS[schedule], quantity
        np.testing.assert_array_equal(resumed[quantity].values, whole[quantity].values, quantity)

"""A study killed at random instants ends as the uninterrupted one, and repeats no finished run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import killed_study
import numpy as np
import pytest

from observatory.records import open_run
from observatory.running import run_experiment


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_instants_it_concludes_the_same(seed: int, tmp_path: Path) -> None:
    file = killed_study.write_study(tmp_path / "small.yaml")
    script = [sys.executable, killed_study.__file__, file, tmp_path / "killed", str(seed)]
    done = subprocess.run(script, check=True, timeout=120, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) >= 1
    run_experiment(file, output=tmp_path / "whole")
    whole, killed = tmp_path / "whole/small", tmp_path / "killed/small"
    for name in ("conclusion.json", "report.html"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    for folder in sorted(path.parent for path in whole.glob("*/observatory")):
        one, other = open_run(folder), open_run(killed / folder.name)
        assert list(one) == list(other)
        for name in one:  # all steps, each once, each value bit for bit
            assert np.array_equal(one[name].steps, other[name].steps)
            assert np.array_equal(one[name].values, other[name].values, equal_nan=True)

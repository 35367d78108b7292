"""`kill -9` at random instants, then resume: the record is that of an uninterrupted run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from observatory.records import Run, open_run

KILLED = Path(__file__).with_name("killed.py")


def run(folder: Path, patience: list[float]) -> Run:
    command = [sys.executable, "-W", "ignore", str(KILLED), str(folder), *map(str, patience)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return open_run(folder / "run/version_0")


def assert_equal(one: Run, other: Run) -> None:
    assert list(one) == list(other) and "ntk/kernel" in one
    for name in one:
        np.testing.assert_array_equal(one[name].steps, other[name].steps, name)
        np.testing.assert_array_equal(one[name].values, other[name].values, name)  # NaN equals NaN here


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_record_of_a_run_killed_at_random_instants_is_that_of_an_uninterrupted_one(tmp_path, kills):
    whole = run(tmp_path / "whole", [])
    assert whole["ntk/entropy"].steps.tolist() == list(range(0, 121, 2))
    patience = np.random.default_rng(kills).uniform(0.1, 0.7, kills).tolist()
    assert_equal(run(tmp_path / "killed", patience), whole)

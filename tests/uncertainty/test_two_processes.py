"""Two processes know what one knows, whatever part of the data each of them has seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from workers import fitted

HERE = Path(__file__).parent


def test_two_processes_fit_calibrate_and_predict_like_one(tmp_path):
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(HERE / "workers.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = fitted()
    for name, value in alone.items():
        assert torch.equal(one[name], other[name]), name
        # sums of 101 terms in another order; α of a classifier is found on a grid to 10⁻⁵
        tolerance = 1e-6 if name.endswith(" p") else 1e-11 if "alpha" in name or "std" in name else 1e-12
        error = (one[name] - value).norm() / value.norm()
        assert error <= tolerance, (name, error)

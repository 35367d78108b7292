"""Fixtures that every room shares."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data sets."""
    root = os.environ.get("OBSERVATORY_DATA")
    if root is None:
        pytest.skip(
            "real data: set OBSERVATORY_DATA to the folder that holds mnist/, fashion-mnist/, uci/ ..."
        )
    return Path(root)


@pytest.fixture(autouse=True)
def _own_streams() -> None:
    """No test depends on the order of tests."""
    torch.manual_seed(0)

"""Regression tables with their published splits."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from observatory.data import UCI, Diabetes, MissingData


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A table of 50 rows: a feature, a constant one, a second target that is none of either, the target."""
    folder = tmp_path / "uci"
    folder.mkdir()
    rows = np.arange(50.0)
    table = np.stack([rows, np.full(50, 0.998), -rows, 3 * rows + 7], 1)
    with gzip.open(folder / "yacht.data.txt.gz", "wt") as file:
        np.savetxt(file, table)
    with gzip.open(folder / "yacht.test_indices.txt.gz", "wt") as file:
        file.write("0 1 2 3 4\n10 20 30 40 49\n")
    about = {"yacht": {"feature_columns": [0, 1], "target_column": 3, "splits": 2}}
    (folder / "index.json").write_text(json.dumps(about))
    return tmp_path


def test_test_rows_are_those_of_the_published_split(root: Path) -> None:
    data = UCI("yacht", split=1, root=root)
    x, y = data.dataset("test").tensors
    targets = y.double() * data.target_std + data.target_mean
    expected = 3 * torch.tensor([10.0, 20, 30, 40, 49], dtype=torch.float64)[:, None] + 7
    torch.testing.assert_close(targets, expected, atol=1e-4, rtol=0)  # float32 of numbers up to 150
    assert x.shape == (5, 2)
    assert [len(data.dataset(s)) for s in ("train", "val", "test")] == [40, 5, 5]


def test_features_and_targets_are_standardised_with_the_training_rows(root: Path) -> None:
    x, y = UCI("yacht", root=root).dataset("train").tensors
    for column in (x[:, 0], y[:, 0]):
        assert column.mean().item() == pytest.approx(0, abs=1e-6)
        assert column.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(x[:, 1], torch.zeros(40))  # constant: neither 0/0 nor amplified round-off
    torch.testing.assert_close(x[:, :1], y)  # the target is a line in the feature


def test_unknown_splits_and_missing_tables_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="yacht has splits 0 to 1, got split=7"):
        UCI("yacht", split=7, root=root).setup("fit")
    with pytest.raises(MissingData, match=r"UCI wine: no wine.data.txt\[.gz\].*OBSERVATORY_DATA.*Source:"):
        UCI("wine", root=root).setup("fit")


def test_diabetes_needs_no_file() -> None:
    data = Diabetes()
    sizes = [len(data.dataset(split)) for split in ("train", "val", "test")]
    assert sizes == [309, 45, 88] and sum(sizes) == 442
    x, y = data.dataset("train").tensors
    assert x.shape == (309, 10) and y.shape == (309, 1)
    assert 25 <= data.target_mean + data.target_std * y.min().item() <= 346  # progressions are 25 to 346


def test_published_tables_have_the_published_moments(data_root: Path) -> None:
    index = json.loads((data_root / "uci" / "index.json").read_text())
    for name in ("boston", "naval", "wine", "yacht"):
        about = index[name]
        data = UCI(name, validation=0.0, root=data_root)
        x = data.dataset("train").tensors[0]
        assert x.shape == (about["rows"] - about["n_test"], len(about["feature_columns"]))
        assert len(data.dataset("test")) == about["n_test"]
        # mean over the 90 % that are not tested: 5 σ of its sampling error
        error = 5 * about["target_std"] * (0.1 / about["n_test"] / 9) ** 0.5 * 3
        assert data.target_mean == pytest.approx(about["target_mean"], abs=error)

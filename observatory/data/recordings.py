"""Files of recorded time series."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from observatory.data.files import MissingData


@dataclass(frozen=True)
class TrajectorySet:
    """Trajectories of equal length on one regular time grid."""

    x: Tensor  # (P, T, D): trajectories, times, dimensions
    dt: float  # time step, in the file's unit
    names: tuple[str, ...]  # of the D dimensions


class _Content(NamedTuple):
    x: np.ndarray  # (T,), (T, D) or (P, T, D)
    dt: float | None = None  # if the file tells
    names: tuple[str, ...] = ()  # if the file tells


def read_trajectories(path: str | os.PathLike[str], *, dt: float | None = None) -> TrajectorySet:
    """Trajectories, float64, from a file without pickles.

    - .npy: an array (T,), (T, D) or (P, T, D).
    - .npz: the same as `x` or as the only array, with times `t` or the step `dt` beside it.
    - .csv: a column per dimension, with or without names; `t` or `time` holds the times, `trajectory` the
      number of the trajectory.
    - .xvg: as GROMACS writes it: lines of # and @ first, then times and a column per dimension.

    Args:
        path: of the file.
        dt: time step where the file does not tell; default 1.

    Raises:
        MissingData: if there is no such file.
        ValueError: if the times are irregular, the lengths unequal, or `dt` contradicts the file.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingData(f"no trajectories in {file}: give path= of a .csv, .npy, .npz or .xvg file")
    if file.suffix not in _READERS:
        raise ValueError(f"trajectories are read from .csv, .npy, .npz and .xvg, not from {file.name}")
    x, own, names = _READERS[file.suffix](file)
    if dt is not None and own is not None and not np.isclose(dt, own, rtol=1e-3):
        raise ValueError(f"{file} has time step {own:g}, but dt={dt:g} was given")
    if x.ndim not in (1, 2, 3):
        raise ValueError(f"trajectories have shape (T,), (T, D) or (P, T, D), got {x.shape} in {file}")
    cube = x[None, :, None] if x.ndim == 1 else (x[None] if x.ndim == 2 else x)
    tensor = torch.from_numpy(np.ascontiguousarray(cube, dtype=np.float64))
    step = next((step for step in (dt, own) if step is not None), 1.0)
    return TrajectorySet(tensor, step, names or tuple(f"x{d}" for d in range(tensor.shape[2])))


def _step(times: np.ndarray, where: Path) -> float:
    """Time step of regular times (..., T)."""
    steps = np.diff(times, axis=-1)
    dt = float(steps.mean())
    if not (dt > 0 and np.allclose(steps, dt, rtol=1e-3, atol=0)):
        raise ValueError(f"the times in {where} are not regular: steps {steps.min():g} to {steps.max():g}")
    return dt


def _read_npy(path: Path) -> _Content:
    return _Content(np.load(path, allow_pickle=False))


def _read_npz(path: Path) -> _Content:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    times, dt = arrays.pop("t", None), arrays.pop("dt", None)
    if "x" not in arrays and len(arrays) != 1:
        raise ValueError(f"{path} holds {', '.join(arrays)}; store the trajectories as x, beside t or dt")
    x = arrays["x"] if "x" in arrays else next(iter(arrays.values()))
    if dt is not None:
        return _Content(x, float(dt))
    return _Content(x, None if times is None else _step(times, path))


def _read_csv(path: Path) -> _Content:
    names = _header(path)
    table = np.loadtxt(path, delimiter=",", skiprows=1 if names else 0, ndmin=2)
    columns = dict(zip(names or [f"x{d}" for d in range(table.shape[1])], table.T, strict=True))
    which = columns.pop("trajectory", np.zeros(len(table)))
    order = np.argsort(which, kind="stable")
    _, lengths = np.unique(which, return_counts=True)
    if lengths.min() != lengths.max():
        raise ValueError(
            f"trajectories in {path} have {lengths.min()} to {lengths.max()} points: cut them equal"
        )
    shape = (len(lengths), lengths[0])
    times = next((columns.pop(name) for name in ("t", "time") if name in columns), None)
    x = np.stack([column[order].reshape(shape) for column in columns.values()], axis=-1)
    return _Content(x, None if times is None else _step(times[order].reshape(shape), path), tuple(columns))


def _read_xvg(path: Path) -> _Content:
    """Columns of GROMACS; the names are its legends, such as '@ s0 legend "end to end"'."""
    with path.open() as lines:
        names = tuple(
            line.split('"')[1]
            for line in lines
            if line.startswith("@ s") and " legend " in line and '"' in line
        )
    table = np.loadtxt(path, comments=("#", "@", "&"), ndmin=2)
    if table.shape[1] < 2:
        raise ValueError(
            f"{path} has {table.shape[1]} column; the first holds the times, the others positions"
        )
    return _Content(table[:, 1:], _step(table[:, 0], path), names if len(names) == table.shape[1] - 1 else ())


def _header(path: Path) -> list[str]:
    """Names of the columns; none if the first line is numbers."""
    with path.open() as lines:
        first = [name.strip().strip('"') for name in lines.readline().lstrip("#").split(",")]
    try:
        [float(name) for name in first]
    except ValueError:
        return first
    return []


_READERS = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv, ".xvg": _read_xvg}

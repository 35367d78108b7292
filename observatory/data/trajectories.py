"""Recorded time series: whole, cut into windows, or as pairs a lag apart."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from observatory.data.files import data_root
from observatory.data.loading import evaluation_loader, training_loader
from observatory.data.recordings import TrajectorySet, read_trajectories


class Windows(Dataset):
    """Every `stride`-th window of trajectories (P, T, D); an item has shape (length, D)."""

    def __init__(self, x: Tensor, length: int, stride: int = 1) -> None:
        self.views = x.unfold(1, length, stride).movedim(3, 2)  # (P, windows, length, D), no copy

    def __len__(self) -> int:
        return self.views.shape[0] * self.views.shape[1]

    def __getitem__(self, index: int) -> Tensor:
        return self.views[divmod(index, self.views.shape[1])]


class Pairs(Windows):
    """All pairs x(t), x(t + lag·dt) of trajectories (P, T, D); an item is two tensors of shape (D,)."""

    def __init__(self, x: Tensor, lag: int) -> None:
        super().__init__(x, lag + 1)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        window = super().__getitem__(index)
        return window[0], window[-1]


class Trajectories(LightningDataModule):
    """Recorded trajectories: a batch is (B, T, D), with `window` (B, window, D), with `lag` two (B, D).

    Validation gets whole trajectories where there are several, else the end of the only one; no window
    reaches from one split into the other. After `setup` the data are in `train` and `val`.

    Args:
        path: .csv, .npy, .npz or .xvg, see `read_trajectories`; as given, else relative to `root`, else an
        example
            shipped with the experiments.
        dt: time step where the file does not tell; default 1.
        window: points per window; default whole trajectories.
        stride: points between the beginnings of windows.
        lag: steps between the two members of a pair, instead of windows.
        validation: share of the trajectories, or of the time, in the validation split.
        batch_size: items per training batch.
        seed: of the order of the items in each epoch.
        split_seed: of the choice of the validation trajectories.
        root: folder of the data sets; default $OBSERVATORY_DATA, else ~/.cache/observatory.
        num_workers: processes that prepare batches.
    """

    train: TrajectorySet
    val: TrajectorySet

    def __init__(
        self,
        path: str,
        dt: float | None = None,
        window: int | None = None,
        stride: int = 1,
        lag: int | None = None,
        validation: float = 0.2,
        batch_size: int = 64,
        seed: int = 0,
        split_seed: int = 0,
        root: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if window is not None and lag is not None:
            raise ValueError(f"batches are windows or pairs, got both window={window} and lag={lag}")
        if min(window or 1, lag or 1, stride) < 1 or not 0 <= validation < 1:
            given = f"window={window}, lag={lag}, stride={stride}, validation={validation}"
            raise ValueError(f"{given}: the first three are at least 1, the last in [0, 1)")
        own = Path(str(files("observatory.experiments") / path))  # an example that is shipped
        places = (Path(path), data_root(root) / path, own)
        self.path = next((place for place in places if place.is_file()), places[1])
        self.dt, self.window, self.stride, self.lag = dt, window, stride, lag
        self.validation, self.batch_size = validation, batch_size
        self.seed, self.split_seed, self.num_workers = seed, split_seed, num_workers

    def setup(self, stage: str) -> None:
        if hasattr(self, "train"):
            return
        whole = read_trajectories(self.path, dt=self.dt)
        trajectories, times = whole.x.shape[:2]
        if trajectories > 1:
            order = torch.randperm(trajectories, generator=torch.Generator().manual_seed(self.split_seed))
            val, train = (
                whole.x[p.sort().values]
                for p in torch.tensor_split(order, [round(self.validation * trajectories)])
            )
        else:
            train, val = whole.x.tensor_split([times - round(self.validation * times)], dim=1)
        self.train, self.val = (TrajectorySet(x, whole.dt, whole.names) for x in (train, val))

    def dataset(self, trajectories: TrajectorySet) -> Dataset:
        """Its windows or pairs.

        Raises:
            ValueError: if the trajectories are too short for one of them.
        """
        x, length = trajectories.x, (self.lag + 1 if self.lag else self.window or trajectories.x.shape[1])
        if x.shape[1] < length:
            raise ValueError(f"trajectories of {x.shape[1]} points hold no window of {length}")
        return Pairs(x, self.lag) if self.lag else Windows(x, max(length, 1), self.stride)

    def train_dataloader(self) -> DataLoader:
        return training_loader(
            self.dataset(self.train), self.batch_size, seed=self.seed, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader | list:
        if self.val.x.numel() == 0:
            return []
        return evaluation_loader(self.dataset(self.val), self.batch_size, num_workers=self.num_workers)

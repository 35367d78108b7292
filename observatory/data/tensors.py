"""Data that fit into memory: three splits of (inputs, targets), and what all of them can be asked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from observatory.data.loading import evaluation_loader, training_loader


class Splits(NamedTuple):
    """Inputs (N, ...) and targets (N,) or (N, outputs) of each split."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def spread_order(targets: Tensor, *, generator: torch.Generator) -> Tensor:
    """A random order of which every prefix has the class shares of the whole, to within one example a class.

    Args:
        targets: integer classes, shape (N,); of any other kind all orders are equally likely.
        generator: draws the order, on the CPU.

    Returns:
        Permutation of 0 ... N-1, shape (N,).
    """
    order = torch.randperm(len(targets), generator=generator)
    if targets.is_floating_point() or targets.ndim != 1 or len(targets) == 0:
        return order
    _, classes, counts = targets[order].unique(return_inverse=True, return_counts=True)
    own = torch.nn.functional.one_hot(classes)
    turn = (own.cumsum(0) * own).sum(1)  # this is the turn-th example of its class
    return order[torch.argsort((turn - 0.5) / counts[classes], stable=True)]


def split_tensors(
    x: Tensor, y: Tensor, *, validation: float, test: float, generator: torch.Generator
) -> Splits:
    """Cut (x, y) into disjoint splits of equal class shares; `validation` and `test` are parts of 1."""
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ValueError(
            f"validation={validation} and test={test} leave nothing to train on; their sum must stay below 1"
        )
    order = spread_order(y, generator=generator)
    cuts = [round(test * len(y)), round((test + validation) * len(y))]
    held_out, tuned_on, trained_on = (part.sort().values for part in torch.tensor_split(order, cuts))
    return Splits((x[trained_on], y[trained_on]), (x[tuned_on], y[tuned_on]), (x[held_out], y[held_out]))


class TensorData(LightningDataModule):
    """Base of the data modules in memory; a subclass says in `splits()` where the tensors come from.

    Args:
        batch_size: examples per training batch.
        subset: number of training examples to keep, with the class shares of all; default all.
        shuffle_labels: share of the training targets that are permuted among themselves, 0 to 1 (Zhang et
            al. 2017, arXiv:1611.03530); validation and test stay true.
        replacement: draw the examples of an epoch with replacement instead of reshuffling them.
        seed: of the order of the examples in each epoch.
        split_seed: of the split, the subset and the permuted labels.
        num_workers: processes that prepare batches; 0 is fastest for data in memory.
    """

    def __init__(
        self,
        batch_size: int = 64,
        subset: int | None = None,
        shuffle_labels: float = 0.0,
        replacement: bool = False,
        seed: int = 0,
        split_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= shuffle_labels <= 1:
            raise ValueError(f"shuffle_labels is a share between 0 and 1, got {shuffle_labels}")
        self.batch_size, self.num_workers = batch_size, num_workers
        self.subset, self.shuffle_labels = subset, shuffle_labels
        self.replacement, self.seed, self.split_seed = replacement, seed, split_seed
        self._data: Splits | None = None

    def splits(self) -> Splits:
        """The normalised data; all training examples, their true targets."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Load what is not loaded yet.

        Raises:
            MissingData: if files are not where they should be.
            ValueError: if the subset is larger than the training data.
        """
        if self._data is None:
            data = self.splits()
            self._data = data._replace(train=self._chosen(*data.train))

    def adopt(self, other: TensorData) -> bool:
        """Take over the tensors of `other` if it would load the same ones; whether it does."""
        if type(self) is type(other) and self._contents() == other._contents():
            other.setup("fit")
            self._data = other._data
            return True
        return False

    def _contents(self) -> dict[str, object]:
        """The settings on which the tensors depend."""
        order = ("seed", "replacement", "batch_size", "num_workers", "trainer")
        return {key: v for key, v in vars(self).items() if key not in order and not key.startswith("_")}

    def _chosen(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Subset and shuffled labels."""
        generator = torch.Generator().manual_seed(self.split_seed)
        if self.subset is not None:
            if not 1 <= self.subset <= len(y):
                raise ValueError(f"subset={self.subset}, but there are {len(y)} training examples")
            keep = spread_order(y, generator=generator)[: self.subset]
            x, y = x[keep], y[keep]
        if self.shuffle_labels > 0:
            moved = torch.randperm(len(y), generator=generator)[: round(self.shuffle_labels * len(y))]
            y = y.clone()
            y[moved] = y[moved[torch.randperm(len(moved), generator=generator)]]
        return x, y

    def dataset(self, split: str) -> TensorDataset:
        """The data set of "train", "val" or "test"."""
        self.setup("fit")
        return TensorDataset(*getattr(self._data, split))

    def train_dataloader(self) -> DataLoader:
        return training_loader(
            self.dataset("train"),
            self.batch_size,
            seed=self.seed,
            replacement=self.replacement,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        return self._evaluated("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluated("test")

    def _evaluated(self, split: str) -> DataLoader:
        size = max(self.batch_size, 512)  # no gradients: memory allows more, and the mean is the same
        return evaluation_loader(self.dataset(split), size, num_workers=self.num_workers)

"""Batches for methods that need no data."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from observatory.data.loading import training_loader


class Steps(LightningDataModule):
    """An epoch of `per_epoch` batches, each of which is a list with nothing but its number, shape (1,).

    Args:
        per_epoch: calls of `advance` in an epoch.
    """

    def __init__(self, per_epoch: int = 100) -> None:
        super().__init__()
        if per_epoch < 1:
            raise ValueError(f"per_epoch must be at least 1, got {per_epoch}")
        self.per_epoch = per_epoch

    def train_dataloader(self) -> DataLoader:
        return training_loader(TensorDataset(torch.arange(self.per_epoch)), 1, shuffle=False)

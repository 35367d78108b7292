"""The batches of many runs, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from observatory.data.loading import EpochSampler, ResumableLoader
from observatory.data.tensors import TensorData


class _StackedSampler(EpochSampler):
    """An index of each member at a time, in the order of that member's own sampler."""

    def __init__(self, members: Sequence[EpochSampler]) -> None:
        super().__init__(members[0].dataset, seed=members[0].seed)  # type: ignore[arg-type]
        self.members = members

    def order(self) -> Tensor:
        for member in self.members:
            member.set_epoch(self.epoch)
            member.offset = self.offset
        return torch.stack([member.order() for member in self.members], 1)  # (N, K)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.order().unbind())


class StackedTensors(Dataset):
    """Examples of K data sets of equal length: item i has what each set holds at i, shapes (K, ...).

    Tensors that all members share are stored once.
    """

    def __init__(self, members: Sequence[TensorDataset]) -> None:
        self.size, self.length = len(members), len(members[0])
        columns = zip(*(member.tensors for member in members), strict=True)
        self.columns = [_shared_or_stacked(column) for column in columns]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(column[:, 0] for column in self.__getitems__([index]))

    def __getitems__(self, rows: Sequence[int | Tensor]) -> tuple[Tensor, ...]:
        """A batch (K, B, ...) of B rows: indices common to all members, or one for each, shape (K,)."""
        own = torch.stack([torch.as_tensor(row).expand(self.size) for row in rows], 1)  # (K, B)
        members = torch.arange(self.size)[:, None]
        return tuple(x[own] if shared else x[members, own] for x, shared in self.columns)


def _shared_or_stacked(column: Sequence[Tensor]) -> tuple[Tensor, bool]:
    if all(x is column[0] or torch.equal(x, column[0]) for x in column):
        return column[0], True
    return torch.stack(list(column)), False


class StackedData(LightningDataModule):
    """Batches (K, B, ...) whose k-th part is the batch that the k-th data module would give at that step.

    Members that would load the same tensors load them once.

    Args:
        members: data modules in memory with equally many training examples and equal batch sizes.

    Raises:
        ValueError: if they cannot be stacked; `why_not` says it without raising.
    """

    def __init__(self, members: Sequence[TensorData]) -> None:
        super().__init__()
        if reason := self.why_not(members):
            raise ValueError(reason)
        self.members = list(members)

    @staticmethod
    def why_not(members: Sequence[LightningDataModule]) -> str | None:
        """What keeps these data modules from being stacked; None if nothing does."""
        if not members:
            return "there is nothing to stack"
        for member in members:
            if not isinstance(member, TensorData):
                return f"{type(member).__name__} is not held in memory as tensors"
            if type(member).train_dataloader is not TensorData.train_dataloader:
                return f"{type(member).__name__} has batches of its own making"
        sizes = sorted({member.batch_size for member in members})  # type: ignore[attr-defined]
        if len(sizes) > 1:
            return f"the batch sizes differ: {', '.join(map(str, sizes))}"
        return None

    def setup(self, stage: str) -> None:
        """Load each distinct set of tensors once.

        Raises:
            ValueError: if the members have different numbers of examples.
        """
        loaded: list[TensorData] = []
        for member in self.members:
            if not any(member.adopt(other) for other in loaded):
                member.setup(stage)
                loaded.append(member)
        lengths = sorted({len(member.dataset("train")) for member in loaded})
        if len(lengths) > 1:
            raise ValueError(f"members with {lengths} training examples take different numbers of steps")

    def train_dataloader(self) -> DataLoader:
        sets = [member.dataset("train") for member in self.members]
        samplers = [cast(EpochSampler, member.train_dataloader().sampler) for member in self.members]
        return ResumableLoader(
            StackedTensors(sets),
            self.members[0].batch_size,
            sampler=_StackedSampler(samplers),
            collate_fn=_as_it_is,
            generator=torch.Generator(),
        )

    def val_dataloader(self) -> DataLoader:
        return self._evaluated("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluated("test")

    def _evaluated(self, split: str) -> DataLoader:
        stacked = StackedTensors([member.dataset(split) for member in self.members])
        size = max(self.members[0].batch_size, 512 // len(self.members))
        return DataLoader(stacked, size, collate_fn=_as_it_is, generator=torch.Generator())


def _as_it_is(batch: Any) -> Any:
    return batch

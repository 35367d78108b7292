"""The order of the examples: a function of (seed, epoch) that can be entered at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler


def _stream(*key: int) -> int:
    """A 64-bit seed for the stream named by `key`; different keys give independent streams."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


class EpochSampler(DistributedSampler):
    """Indices of one epoch in an order that depends on nothing but (seed, epoch), from position `offset` on.

    A `DistributedSampler`, so that Lightning keeps it under every strategy; each rank takes every
    `num_replicas`-th index, the order being wrapped round to a common length.

    Args:
        dataset: anything with a length.
        shuffle: a random permutation in each epoch; otherwise the order of the data set.
        replacement: each index of a shuffled epoch is drawn independently of the others, with replacement.
        seed: of the permutations.
    """

    def __init__(
        self, dataset: Sized, *, shuffle: bool = True, replacement: bool = False, seed: int = 0
    ) -> None:
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        super().__init__(cast(Dataset, dataset), ranks, rank, shuffle=shuffle, seed=seed)
        self.replacement = replacement
        self.offset = 0  # indices of this rank to leave out at the beginning

    def order(self) -> Tensor:
        """The indices of this epoch and rank from `offset` on, int64."""
        n = len(cast(Sized, self.dataset))
        if self.shuffle:
            generator = torch.Generator().manual_seed(_stream(self.seed, self.epoch))
            order = (
                torch.randint(n, (n,), generator=generator)
                if self.replacement
                else torch.randperm(n, generator=generator)
            )
        else:
            order = torch.arange(n)
        own = order[torch.arange(self.rank, self.total_size, self.num_replicas) % max(n, 1)]
        return own[self.offset :]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.order().tolist())


class ResumableLoader(DataLoader):
    """A `DataLoader` that a checkpoint of Lightning puts back behind the last batch trained on.

    The state counts the batches handed out, not those that worker processes have fetched ahead.
    """

    _done = 0  # batches of this epoch handed out
    _resumed: tuple[int, int] | None = None  # (epoch, batches) of a loaded state, until the next epoch begins

    # A generator function: nothing happens before the first batch is asked for, by when Lightning has
    # told the sampler its epoch (it calls `iter` first, and worker processes would already be fetching).
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        sampler = self._epoch_sampler
        epoch, done = self._resumed or (sampler.epoch, 0)
        self._resumed = None
        self._done = done if epoch == sampler.epoch else 0  # that epoch may have been the checkpoint's last
        sampler.offset = self._done * cast(int, self.batch_size)
        if self.generator is not None:  # names the random streams of the workers
            self.generator.manual_seed(_stream(sampler.seed, sampler.epoch))
        for batch in super().__iter__():
            self._done += 1
            yield batch

    @property
    def _epoch_sampler(self) -> EpochSampler:
        if not isinstance(self.sampler, EpochSampler) or self.batch_size is None:
            raise TypeError(
                "a ResumableLoader needs sampler=EpochSampler(dataset, seed=...) and a batch_size, "
                f"got {type(self.sampler).__name__} and batch_size={self.batch_size}; see training_loader"
            )
        return self.sampler

    def state_dict(self) -> dict[str, int]:
        """Epoch and batches handed out in it."""
        return {"epoch": self._epoch_sampler.epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next epoch, if it is the one of `state`, begins behind the batches already handed out."""
        self._epoch_sampler.set_epoch(state["epoch"])
        self._resumed = (state["epoch"], state["batches"])


def training_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    replacement: bool = False,
    num_workers: int = 0,
) -> ResumableLoader:
    """Batches in an order that is a function of (seed, epoch), resumable at every batch.

    Random transforms in a data set draw from streams of its worker processes, which are new in every
    process: what they draw after a resumption in mid-epoch is another sample of the same transform.

    Raises:
        ValueError: if the batch size is not positive.
    """
    return ResumableLoader(
        dataset,
        batch_size,
        sampler=EpochSampler(cast(Sized, dataset), shuffle=shuffle, replacement=replacement, seed=seed),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),
    )


def evaluation_loader(dataset: Dataset, batch_size: int, *, num_workers: int = 0) -> DataLoader:
    """Batches in the order of the data set; no stream outside the loader moves."""
    return DataLoader(
        dataset,
        batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),
    )

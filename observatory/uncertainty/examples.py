"""Training examples for a pass of their own, beside the training and without moving anything of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from observatory.looking.probe import split_batch
from observatory.looking.ranks import rank, world_size

BATCH = 512


class Examples:
    """Batches (inputs, targets) of a loader's data set in a fixed order, each rank its own part of them.

    The loader itself is not iterated, since that would move its sampler and its random streams.
    With several processes the data set has to be the same on all of them, and dealt out by a sampler: of one
    that holds each process's own examples, only every n-th of n processes' would be seen.

    Args:
        loader: whose data set and `collate_fn` are used.
        rows: number of examples, drawn once without replacement; default all.
        seed: of the draw.
        inputs, targets: parts of a batch; default its first and second.

    Raises:
        TypeError: if the data set has no length.
        ValueError: if it is empty.
    """

    def __init__(
        self,
        loader: Any,
        rows: int | None = None,
        *,
        seed: int = 0,
        inputs: Callable[[Any], Any] | None = None,
        targets: Callable[[Any], Any] | None = None,
    ) -> None:
        self.dataset = getattr(loader, "dataset", None)
        if isinstance(self.dataset, IterableDataset) or not hasattr(self.dataset, "__len__"):
            raise TypeError(
                "a stream of training data cannot be passed over again: give examples=Probe(x, y)"
            )
        self.total = len(self.dataset)  # type: ignore[arg-type]
        if self.total == 0:
            raise ValueError("the training data set is empty")
        self.collate = getattr(loader, "collate_fn", None)
        order = torch.randperm(self.total, generator=torch.Generator().manual_seed(seed))
        self.indices = order[: self.total if rows is None else rows].sort().values
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, device: torch.device, dtype: torch.dtype | None) -> Iterator[tuple[Any, Any]]:
        """On `device`, floating numbers in `dtype`."""
        own = self.indices[rank() :: world_size()].tolist()
        loader = DataLoader(
            self.dataset,  # type: ignore[arg-type]
            BATCH,
            sampler=own,
            collate_fn=self.collate,
            generator=torch.Generator(),
        )
        for batch in loader:
            part = split_batch(batch, inputs=self.inputs, targets=self.targets)
            part = part.to(device, dtype)
            yield part.inputs, part.targets

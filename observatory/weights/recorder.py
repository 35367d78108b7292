"""Keeping the snapshots of a window within a budget of memory."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor

from observatory.weights.components import principal_components
from observatory.weights.motion import Motion, motion_along, motion_without_snapshots
from observatory.weights.sketches import CountSketch, FrequentDirections, random_coordinates
from observatory.weights.trajectory import Trajectory, column_means, finite_rows

Storage = Literal["full", "subset", "sketch", "directions"]
ROWS = 128  # of frequent directions
COORDINATES = 4096  # of a sketch
LARGE = 2**22  # bytes from which on large pages pay


def choose_storage(snapshots: int, size: int, *, memory: float, item: int) -> Storage:
    """All snapshots if they fit, else frequent directions, else a random subset of the weights.

    Args:
        snapshots: expected number T.
        size: number of weights P.
        memory: budget in bytes.
        item: bytes of one stored number.
    """
    if snapshots * size * item <= memory:
        return "full"
    return "directions" if 8 * ROWS * size <= memory else "subset"


class Recorder:
    """Snapshots of the weights of a window, as differences from the first.

    Args:
        theta: the weights at the first snapshot, by name.
        capacity: expected number of snapshots; more are taken in too, at the price of a larger buffer.
        storage: "full" keeps all weights, "subset" some coordinates, "sketch" random sums (no directions),
            "directions" the leading directions only (no time series).
        memory: budget in bytes, which decides the size of a subset.
        dtype: of the stored differences.
        device: where they are stored; default where the weights are. CPU memory is pinned for a GPU.
        seed: of random coordinates and sketches.
    """

    def __init__(
        self,
        theta: Mapping[str, Tensor],
        *,
        capacity: int,
        storage: Storage = "full",
        memory: float = 2.0**31,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        self.names = tuple(theta)
        self.shapes = tuple(tensor.shape for tensor in theta.values())
        self.reference = _flat(theta).clone()
        self.storage = storage
        self.steps: list[int] = []
        self._kept: Tensor | None = None
        self._sketch: CountSketch | None = None
        self._directions: FrequentDirections | None = None
        here, size = self.reference.device, self.reference.numel()
        generator = torch.Generator().manual_seed(seed)
        width = size
        if storage == "subset":
            item = torch.empty(0, dtype=dtype).element_size()
            width = max(1, min(size, int(memory // (capacity * item))))
            self._kept = random_coordinates(size, width, generator=generator).to(here)
        elif storage == "sketch":
            width = COORDINATES
            self._sketch = CountSketch(size, width, generator=generator, device=here)
        elif storage == "directions":
            width = 0
            self._directions = FrequentDirections(size, ROWS, device=here)
        self._rows = self._allocate(capacity, width, dtype, here if device is None else torch.device(device))
        same = self._rows.dtype == self.reference.dtype and self._rows.device == here
        self._as_they_are = storage == "full" and same  # without a copy in between

    def _allocate(self, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        pinned = self.reference.is_cuda and device.type == "cpu"
        if device.type == "cpu" and not pinned:
            return _in_large_pages(rows, width, dtype)
        return torch.empty(rows, width, dtype=dtype, device=device, pin_memory=pinned)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def width(self) -> int:
        """Numbers kept of each snapshot; P for frequent directions."""
        return self._rows.shape[1] or self.reference.numel()

    def add(self, theta: Mapping[str, Tensor], step: int) -> None:
        """Take a snapshot; the weights are copied, from a GPU without waiting for it."""
        self.steps.append(step)
        if self._as_they_are and len(self.steps) <= len(self._rows):
            row = self._rows.select(0, len(self.steps) - 1)
            torch.sub(_flat(theta), self.reference, out=row)  # in one pass, within microseconds
            return
        flat = _flat(theta)
        if self._directions is not None:
            self._directions.update((flat - self.reference)[None])
            return
        if len(self.steps) > len(self._rows):
            larger = self._allocate(2 * len(self._rows) + 1, *self._layout)
            larger[: len(self._rows)] = self._rows
            self._rows = larger
        row = self._rows[len(self.steps) - 1]
        difference = flat - self.reference
        if self._kept is not None:
            difference = difference[self._kept]
        elif self._sketch is not None:
            difference = self._sketch(difference)
        row.copy_(difference, non_blocking=True)

    @property
    def _layout(self) -> tuple[int, torch.dtype, torch.device]:
        return self._rows.shape[1], self._rows.dtype, self._rows.device

    def trajectory(self) -> Trajectory:
        """What was kept as a trajectory: of all weights, of some, or of sketched coordinates.

        Raises:
            ValueError: if there are fewer than three snapshots, or only directions were kept.
        """
        if self._directions is not None:
            raise ValueError("frequent directions keep no snapshots; use storage='full' or 'subset'")
        if self._rows.device != self.reference.device and self.reference.is_cuda:
            torch.cuda.synchronize(self.reference.device)  # copies that nobody waited for
        rows = self._rows[: len(self)]
        start = self.reference if self._kept is None else self.reference[self._kept]
        if self._sketch is not None:
            start = torch.zeros_like(rows[0])
        return Trajectory(rows, start.to(rows.device), torch.tensor(self.steps), self.names, self.shapes)

    def center(self) -> Tensor:
        """Mean weights over the window, (P,); of weights that were not kept, those of the first snapshot."""
        if self._directions is not None:
            return (self.reference.double() + self._directions.mean).to(self.reference)
        if self._sketch is not None:
            return self.reference
        mean = column_means(self._rows[: len(self)]).to(self.reference)
        if self._kept is None:
            return self.reference + mean
        return self.reference.index_add(0, self._kept, mean)

    def diverged_at(self) -> int:
        """Step of the first snapshot that is not finite; of the first one if only directions were kept."""
        if self._directions is not None:
            return self.steps[0]
        return self.steps[int(finite_rows(self._rows[: len(self)]).int().argmin())]

    def principal_motion(self, count: int) -> tuple[Tensor | None, Motion]:
        """Unit directions (k, P) of the leading components, None for a sketch, and the motion along them."""
        size, window = self.reference.numel(), len(self) * (self.steps[1] - self.steps[0])
        if self._directions is not None:
            variance, vectors = self._directions.components(count)
            total = self._directions.total / (len(self) - 1)
            return vectors, motion_without_snapshots(variance, total=total, size=size, window=window)
        trajectory = self.trajectory()
        found, vectors = principal_components(trajectory.differences, count)
        motion = motion_along(
            found.projections,
            found,
            every=trajectory.every,
            size=self.width if self._kept is not None else size,
        )
        if self._sketch is not None:
            return None, motion
        if self._kept is not None:
            lifted = torch.zeros(len(vectors), size, dtype=vectors.dtype, device=vectors.device)
            vectors = lifted.index_copy(1, self._kept.to(vectors.device), vectors)
        return vectors, motion

    def state_dict(self) -> dict[str, Any]:
        """For a resumed run; the directions of a sketch of directions are not kept."""
        return {
            "reference": self.reference.cpu(),
            "rows": self._rows[: len(self)].cpu(),
            "steps": list(self.steps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reference = state["reference"].to(self.reference)
        self.steps = list(state["steps"])
        if len(self._rows) < len(self.steps):
            self._rows = self._allocate(len(self.steps), *self._layout)
        self._rows[: len(self.steps)] = state["rows"].to(self._rows)


def _in_large_pages(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Memory that is taken when it is written, in large pages: small ones cost more than the writing."""
    size = rows * width * torch.empty(0, dtype=dtype).element_size()
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(rows, width, dtype=dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(rows, width)


def _flat(theta: Mapping[str, Tensor]) -> Tensor:
    parts = [tensor.reshape(-1) for tensor in theta.values()]
    return parts[0] if len(parts) == 1 else torch.cat(parts)

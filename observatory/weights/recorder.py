"""Keeping the snapshots of a window within a budget of memory."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import suppress
from ctypes import c_ubyte
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
LARGE = 2**22  # bytes from which on large pages pay; less is recycled by malloc
PAGE = 2**21  # bytes of a large one


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
        self._capacity = capacity
        same = self._rows.dtype == self.reference.dtype and self._rows.device == here
        self._as_they_are = storage == "full" and same  # the reference is subtracted when rows are read
        self._subtracted = 0  # rows that it was subtracted from
        self._copy = _Copy(self._rows) if self._as_they_are and here.type == "cpu" else None

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
        number = len(self.steps)
        self.steps.append(step)
        if self._directions is not None:
            self._directions.update((_flat(theta) - self.reference)[None])
            return
        if number == self._capacity:
            self._grow()
        if self._copy is not None and self._copy(theta, number):
            return
        flat = _flat(theta)
        if not self._as_they_are:
            flat = flat - self.reference
        if self._kept is not None:
            flat = flat[self._kept]
        elif self._sketch is not None:
            flat = self._sketch(flat)
        self._rows[number].copy_(flat, non_blocking=True)

    @property
    def repeatable(self) -> bool:
        """Whether `repeat` is possible."""
        return self._copy is not None and self._copy.found

    def repeat(self, step: int) -> bool:
        """Take a snapshot of weights that lie where they lay at the last one; False if there is no room."""
        number = len(self.steps)
        if self._copy is None or not self._copy.found or number == self._capacity:
            return False
        self._copy.repeat(number)
        self.steps.append(step)
        return True

    def _grow(self) -> None:
        rows = self._allocate(2 * self._capacity + 1, *self._layout)
        rows[: self._capacity] = self._rows
        self._rows, self._capacity = rows, len(rows)
        self._copy = None if self._copy is None else _Copy(rows)

    def _differences(self) -> Tensor:
        """What was kept, of all snapshots so far."""
        rows = self._rows[: len(self)]
        if self._as_they_are:
            rows[self._subtracted :] -= self.reference
            self._subtracted = len(self)
        return rows

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
        rows = self._differences()
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
        mean = column_means(self._differences()).to(self.reference)
        if self._kept is None:
            return self.reference + mean
        return self.reference.index_add(0, self._kept, mean)

    def diverged_at(self) -> int:
        """Step of the first snapshot that is not finite; of the first one if only directions were kept."""
        if self._directions is not None:
            return self.steps[0]
        return self.steps[int(finite_rows(self._differences()).int().argmin())]

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
            "rows": self._differences().cpu(),
            "steps": list(self.steps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reference = state["reference"].to(self.reference)
        self.steps = list(state["steps"])
        while self._capacity < len(self.steps):
            self._grow()
        self._subtracted = len(self.steps)
        self._rows[: len(self.steps)] = state["rows"].to(self._rows)


class _Copy:
    """Copies weights into the rows without calling torch, which takes longer than the copying itself.

    Args:
        rows: (T, P) in the CPU's memory, of the dtype of the weights.
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows, self._row = rows, rows.shape[1] * rows.element_size()
        self._target = _memory(rows)
        self._sources: list[tuple[Tensor, memoryview]] = []  # each tensor kept, since its memory is read

    def __reduce__(self) -> tuple[type[_Copy], tuple[Tensor]]:
        return _Copy, (self._rows,)  # a copy of the recorder has rows of its own, and weights to be found

    @property
    def found(self) -> bool:
        """Whether it is known where the weights lie."""
        return bool(self._sources)

    def __call__(self, theta: Mapping[str, Tensor], number: int) -> bool:
        """Copy to row `number`; False, and nothing is done, if some weights do not lie as in a row."""
        tensors, self._sources = list(theta.values()), []
        dtype = self._rows.dtype
        alike = all(t.device.type == "cpu" and t.dtype == dtype and t.is_contiguous() for t in tensors)
        if not alike or sum(t.nbytes for t in tensors) != self._row:  # or it would read or write elsewhere
            return False
        self._sources = [(tensor, _memory(tensor)) for tensor in tensors]
        self.repeat(number)
        return True

    def repeat(self, number: int) -> None:
        """The same with the tensors of the last call."""
        begin = number * self._row
        for _, source in self._sources:
            end = begin + len(source)
            self._target[begin:end] = source
            begin = end


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor; by way of numpy torch would not resize it any more."""
    return memoryview((c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


def _in_large_pages(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Memory that is taken when it is written, in large pages: small ones cost more than the writing.

    Linux begins on the boundary of a large page only what is a multiple of it.
    """
    size = rows * width * torch.empty(0, dtype=dtype).element_size()
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(rows, width, dtype=dtype)
    pages = mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype, count=rows * width).view(rows, width)


def _flat(theta: Mapping[str, Tensor]) -> Tensor:
    parts = [tensor.reshape(-1) for tensor in theta.values()]
    return parts[0] if len(parts) == 1 else torch.cat(parts)

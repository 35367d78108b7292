"""A trajectory in weight space: snapshots of chosen weights, stored as differences from a reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from observatory.numerics.curvature import ravel

BLOCK_BYTES = 2**22  # of the float64 copy of some columns or rows
MANY = 64  # of them are enough for the speed of a matrix product


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Snapshots θ_t = reference + differences_t of P chosen weights.

    Differences keep the small fluctuations of late training that raw float32 weights would round away
    (6·10⁻⁸ |θ|); bfloat16 differences halve the memory once more.

    Raises:
        ValueError: if there are fewer than three snapshots, or their steps are not evenly spaced.
    """

    differences: Tensor  # (T, P), weight units, any floating type
    reference: Tensor  # (P,), weight units
    steps: Tensor  # (T,), int64, optimizer updates that each snapshot had seen
    names: tuple[str, ...]  # of the parameters, in the order of their weights
    shapes: tuple[torch.Size, ...]  # of the parameters

    def __post_init__(self) -> None:
        snapshots = self.differences.shape[0]
        if snapshots < 3:
            raise ValueError(f"fluctuations need at least 3 snapshots, got {snapshots}; use a longer window")
        spacing = self.steps.diff()
        if not bool((spacing == spacing[0]).all()) or int(spacing[0]) < 1:
            raise ValueError(
                f"snapshots must be evenly spaced in steps; these are {sorted(set(spacing.tolist()))} apart"
            )

    @classmethod
    def of(cls, snapshots: Sequence[Mapping[str, Tensor]], steps: Sequence[int]) -> Trajectory:
        """From parameters by name, one dictionary for each step."""
        reference = ravel(snapshots[0])
        differences = reference.new_empty(len(snapshots), len(reference))
        for row, snapshot in zip(differences, snapshots, strict=True):
            torch.sub(ravel(snapshot), reference, out=row)
        shapes = tuple(tensor.shape for tensor in snapshots[0].values())
        return cls(differences, reference, torch.tensor(steps), tuple(snapshots[0]), shapes)

    @property
    def every(self) -> int:
        """Steps between snapshots."""
        return int(self.steps[1] - self.steps[0])

    def __len__(self) -> int:
        return self.differences.shape[0]

    @property
    def size(self) -> int:
        """Number of weights P."""
        return self.differences.shape[1]

    def mean(self) -> Tensor:
        """Mean weights over the window, (P,), in the type of the reference."""
        return (self.reference.double() + column_means(self.differences)).to(self.reference)

    def between(self, start: int, stop: int) -> Trajectory:
        """Snapshots number `start` ... `stop - 1`."""
        return replace(self, differences=self.differences[start:stop], steps=self.steps[start:stop])

    def check_finite(self) -> None:
        """Refuse NaN and infinity.

        Raises:
            ValueError: naming the first step with a weight that is not finite.
        """
        finite = finite_rows(self.differences)
        if not bool(finite.all()):
            step = int(self.steps[int(finite.int().argmin())])
            raise ValueError(f"a weight is not finite at step {step}: end the window before the run diverges")


def column_means(rows: Tensor) -> Tensor:
    """Means over the first axis, accumulated in float64 without a float64 copy of the whole."""
    # torch converts the whole of its argument first where a sum has another type
    parts = [part.sum(0, dtype=torch.float64) for part in rows.split(_columns_at_once(rows), dim=1)]
    return torch.cat(parts) / rows.shape[0]


def finite_rows(rows: Tensor) -> Tensor:
    """Which rows hold nothing but finite numbers, (T,), without a copy of the whole."""
    parts = rows.split(_columns_at_once(rows), dim=1)
    # a sum is finite unless a term is not
    return torch.stack([part.sum(1, dtype=torch.float64).isfinite() for part in parts]).all(0)


def column_blocks(rows: Tensor) -> Iterator[Tensor]:
    """Centred float64 copies of some columns at a time, (T, w), each in the memory of the one before."""
    width = _columns_at_once(rows)
    room = rows.new_empty(rows.shape[0], width, dtype=torch.float64)
    for part in rows.split(width, dim=1):
        block = room[:, : part.shape[1]].copy_(part)
        yield block.sub_(block.mean(0))


def row_blocks(rows: Tensor, mean: Tensor) -> Iterator[Tensor]:
    """Some snapshots minus `mean` at a time in float64, (h, P), each in the memory of the one before."""
    height = _at_once(*rows.shape)
    room = rows.new_empty(height, rows.shape[1], dtype=torch.float64)
    for part in rows.split(height):
        yield room[: len(part)].copy_(part).sub_(mean)


def _columns_at_once(rows: Tensor) -> int:
    return _at_once(rows.shape[1], rows.shape[0])


def _at_once(number: int, length: int) -> int:
    """How many of `number` vectors are converted together: a fortieth, within limits."""
    return max(min(MANY, number), min(BLOCK_BYTES // (8 * length), number // 40))


def load_trajectory(
    checkpoints: Sequence[str | Path | Mapping[str, Any]],
    *,
    select: str | Callable[[str], bool] | None = None,
    steps: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Trajectory:
    """The trajectory through saved checkpoints: Lightning's, or plain state dictionaries.

    Args:
        checkpoints: files, or dictionaries that were loaded already, in the order of training.
        select: regular expression searched in the names of the weights, or a predicate; default all
            floating-point tensors.
        steps: of each checkpoint; default the `global_step` that Lightning saves.
        device: where the trajectory is kept.

    Raises:
        ValueError: if nothing is selected, a checkpoint does not say its step, or is not like the first.
    """
    snapshots, found = [], []
    for index, source in enumerate(checkpoints):
        content = (
            source
            if isinstance(source, Mapping)
            else torch.load(source, map_location="cpu", weights_only=True)
        )
        step = steps[index] if steps is not None else content.get("global_step")
        if step is None:
            raise ValueError(f"checkpoint {index} does not say at which step it was saved: give steps=")
        snapshots.append(_selected(content.get("state_dict", content), select, device))
        found.append(int(step))
        if snapshots[-1].keys() != snapshots[0].keys():
            raise ValueError(
                f"checkpoint {index} holds {', '.join(snapshots[-1])}, the first {', '.join(snapshots[0])}"
            )
    if not snapshots:
        raise ValueError("no checkpoints were given")
    return Trajectory.of(snapshots, found)


def _selected(
    state: Mapping[str, Any], select: str | Callable[[str], bool] | None, device: torch.device | str
) -> dict[str, Tensor]:
    pattern = re.compile(select) if isinstance(select, str) else None
    chosen = {
        name: value.to(device)
        for name, value in state.items()
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and (pattern.search(name) if pattern else select is None or select(name))  # type: ignore[operator]
    }
    if not chosen:
        raise ValueError(f"no weight matches {select!r}; the checkpoint holds {', '.join(list(state)[:8])}")
    return chosen

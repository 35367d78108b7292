"""The steps of an integration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Grid:
    """n steps that meet the times at which the state is wanted."""

    starts: Tensor  # time at the beginning of each step, shape (n,) or (n, *lanes)
    sizes: Tensor  # size of each step, the same shape; 0 where a lane waits for the others
    saves: tuple[int, ...]  # number of steps done when each of the wanted times is reached; the first is 0

    def __len__(self) -> int:
        return len(self.sizes)


def uniform_grid(times: Tensor, step: float) -> Grid:
    """Each interval between two times cut into the fewest equal steps of at most `step`.

    Below `torch.func.vmap` the lanes are all that are mapped over: the steps are those of the whole batch.

    Args:
        times: the times at which the state is wanted, shape (T,) or (T, *lanes) with a grid of its own per
            lane; in a lane times may repeat, and the state then stands still.
        step: largest step, in the unit of the times.

    Raises:
        ValueError: if times decrease or are not finite, or the step is not positive.
    """
    if not step > 0:
        raise ValueError(f"the step must be positive, got {step:g}")
    intervals = checked_intervals(times)
    longest = _over_lanes(intervals.reshape(len(intervals), -1).amax(1))
    # an interval of 20 steps may come out as 20 + 10⁻¹⁵ of them
    counts = torch.ceil(longest / step * (1 - 1e-9)).long().clamp_min(1)
    interval = torch.arange(len(counts), device=times.device).repeat_interleave(counts)
    # position of each step within its interval
    position = torch.arange(len(interval), device=times.device) - (counts.cumsum(0) - counts)[interval]
    lanes = (-1, *[1] * (times.ndim - 1))
    sizes = (intervals / counts.to(times.dtype).reshape(lanes))[interval]
    starts = times[:-1][interval] + position.to(times.dtype).reshape(lanes) * sizes
    return Grid(starts, sizes, (0, *counts.cumsum(0).tolist()))


def checked_intervals(times: Tensor) -> Tensor:
    """Differences of times (T, *lanes), shape (T-1, *lanes), after a check that no time goes backwards."""
    if times.ndim == 0 or len(times) < 2 or not times.is_floating_point():
        raise ValueError(f"times are floating-point and at least two, got {times.dtype} {tuple(times.shape)}")
    intervals = times.diff(dim=0)
    wrong = ~(intervals >= 0) if times.ndim > 1 else ~(intervals > 0)
    somewhere = _over_lanes(wrong.reshape(len(intervals), -1).any(1))
    if somewhere.any():
        k = int(somewhere.nonzero()[0])
        raise ValueError(
            f"times must increase, but time {k + 1} does not come after time {k}: {times[k : k + 2]}"
        )
    return intervals


def _over_lanes(found: Tensor) -> Tensor:
    """The largest of values (K,) over all that `vmap` maps over: a plain tensor, on which code may branch.

    Reductions keep mapped dimensions in front.
    """
    return torch.func.debug_unwrap(found.detach()).reshape(-1, len(found)).amax(0)

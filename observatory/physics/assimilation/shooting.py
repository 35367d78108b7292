"""Multiple shooting: a trajectory in segments, each from a state of its own.

In a chaotic system an error grows as e^{λt}, and the misfit of a long trajectory is a rugged function of its
beginning. Segments of at most half a Lyapunov time 1/λ make it smooth; a penalty on the gaps between them
joins them in the end (Bock, 1981; Voss, Timmer, Kurths, Int. J. Bifurc. Chaos 14, 1905 (2004)).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Query(NamedTuple):
    """Which trajectories, and when."""

    which: Tensor  # number of each trajectory, shape (B,), int64
    times: Tensor  # shape (B, T), increasing


class Shots(NamedTuple):
    """What the segments predict."""

    states: Tensor  # at all times, shape (B, T, D)
    ends: Tensor  # where each segment but the last arrives, shape (B, J-1, D)


def cut(points: int, segments: int) -> Tensor:
    """Numbers of the times at which J segments of equal length begin, go on and end, shape (J, K+1).

    The last segment may be shorter; it then repeats the last time.

    Raises:
        ValueError: if there would be segments without any interval.
    """
    intervals = points - 1
    if not 1 <= segments <= intervals:
        raise ValueError(f"{points} times make 1 to {intervals} segments, got segments={segments}")
    length = math.ceil(intervals / segments)
    if (segments - 1) * length >= intervals:
        raise ValueError(
            f"{intervals} intervals in segments of {length} do not make {segments} of them: "
            f"set segments={math.ceil(intervals / length)}"
        )
    first = torch.arange(segments)[:, None] * length
    return (first + torch.arange(length + 1)).clamp_max(intervals)


def joined(y: Tensor, points: int) -> Shots:
    """Segments (K+1, B, J, D) put one behind the other."""
    y = y.movedim(0, 2)  # (B, J, K+1, D)
    whole = torch.cat([y[:, :, :-1].flatten(1, 2), y[:, -1, -1:]], 1)
    return Shots(whole[:, :points], y[:, :-1, -1])

"""Processes of a distributed run, without knowing who started them. With one process every call is free."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_together = False  # inside `together`


class PeerFailed(RuntimeError):
    """Another rank failed where this one could have gone on."""


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 for the one that writes."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def together() -> Iterator[None]:
    """A stretch of code in which any rank may fail: then all leave it, and none waits for the other forever.

    A rank that fails says so where the others reach their next collective of this module, or the end of the
    stretch; there they raise `PeerFailed` with its reason. The collectives of a stretch must be the same on
    all ranks, apart from failures.
    """
    global _together
    if world_size() == 1:
        yield
        return
    _together = True
    try:
        yield
    except PeerFailed:  # which all of them have heard by now
        raise
    except Exception as error:
        _exchange(f"{type(error).__name__}: {error}")
        raise
    else:
        _exchange(None)
    finally:
        _together = False


def all_here() -> None:
    """Inside `together`, make sure that no rank has failed before a collective of somebody else.

    Raises:
        PeerFailed: if one has.
    """
    if _together and world_size() > 1:
        _exchange(None)


def _exchange(failure: str | None) -> None:
    """Tell the others how it stands. Raises `PeerFailed` where others failed and this rank did not."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    failed = torch.tensor(failure is not None, dtype=torch.int32, device=device)
    dist.all_reduce(failed, dist.ReduceOp.MAX)
    if not failed:
        return
    failures: list[str | None] = [None] * world_size()
    dist.all_gather_object(failures, failure)
    if failure is None:
        number, reason = next((k, why) for k, why in enumerate(failures) if why is not None)
        raise PeerFailed(f"rank {number} failed with {reason}")


def broadcast_object(value: T) -> T:
    """Rank 0's `value` on every rank. Every rank must call it."""
    if world_size() == 1:
        return value
    all_here()
    box: list[T] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_tensor(tensor: Tensor) -> Tensor:
    """A copy of rank 0's `tensor` (same shape and dtype on all) on every rank. Every rank must call it."""
    if world_size() == 1:
        return tensor
    all_here()
    copy = tensor.detach().clone().contiguous()
    dist.broadcast(copy, src=0)
    return copy


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over the ranks, on every rank, as a new tensor. Every rank must call it."""
    if world_size() == 1:
        return tensor
    all_here()
    total = tensor.detach().clone().contiguous()
    dist.all_reduce(total)
    return total


def all_gather_rows(tensor: Tensor) -> Tensor:
    """The rows (first axis, any number on each rank) of all ranks in order. Every rank must call it."""
    if world_size() == 1:
        return tensor
    all_here()
    count = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.zeros_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    longest = int(torch.stack(counts).max())
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])


def warn(message: str) -> None:
    """Warn on rank 0."""
    if rank() == 0:
        warnings.warn(message, UserWarning, stacklevel=3)

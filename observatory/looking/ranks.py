"""Processes of a distributed run, without knowing who started them. With one process every call is free."""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 for the one that writes."""
    return dist.get_rank() if world_size() > 1 else 0


def broadcast_object(value: T) -> T:
    """Rank 0's `value` on every rank. Every rank must call it."""
    if world_size() == 1:
        return value
    box: list[T] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_tensor(tensor: Tensor) -> Tensor:
    """A copy of rank 0's `tensor` (same shape and dtype on all) on every rank. Every rank must call it."""
    if world_size() == 1:
        return tensor
    copy = tensor.detach().clone().contiguous()
    dist.broadcast(copy, src=0)
    return copy


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over the ranks, on every rank, as a new tensor. Every rank must call it."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone().contiguous()
    dist.all_reduce(total)
    return total


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on at least one rank. Every rank must call it."""
    if world_size() == 1:
        return flag
    flags: list[bool] = [False] * world_size()
    dist.all_gather_object(flags, flag)
    return any(flags)


def warn(message: str) -> None:
    """Warn on rank 0."""
    if rank() == 0:
        warnings.warn(message, UserWarning, stacklevel=3)

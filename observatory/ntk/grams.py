"""Gram matrices, half of them where they are symmetric."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from torch import Tensor

TILE_NUMBERS = 2**22  # in one temporary matrix: larger ones cost page faults on a CPU
BLOCKED_ROWS = 128  # fewer are not worth several calls


def add_gram(out: Tensor, rows: Tensor, columns: Tensor | None = None) -> None:
    """out += rows columnsᵀ; without `columns` rows rowsᵀ, of which the upper triangle only is promised.

    Args:
        out: (n, m), changed in place.
        rows: (n, P).
        columns: (m, P).
    """
    if columns is not None:
        out.addmm_(rows, columns.T)
        return
    step = -(-len(rows) // 4) if len(rows) >= BLOCKED_ROWS else len(rows)  # 10 of 16 blocks
    for k in range(0, len(rows), step):
        out[k : k + step, k:].addmm_(rows[k : k + step], rows[k:].T)


def mirror(out: Tensor) -> None:
    """Copy the upper triangle of a square matrix to the lower one, in place."""
    out.triu_()
    out += out.triu(1).mT


def tiles(n: int, m: int, size: int, *, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of an (n, m) matrix in tiles of `size`, those above the diagonal if symmetric."""
    for i in range(0, n, size):
        for j in range(i if symmetric else 0, m, size):
            yield slice(i, min(i + size, n)), slice(j, min(j + size, m))


class Scratch:
    """Memory that is used again and again: fresh pages cost a CPU more than the sums that fill them."""

    def __init__(self) -> None:
        self._numbers: Tensor | None = None

    def of(self, shape: tuple[int, ...], *, like: Tensor) -> Tensor:
        """An uninitialised tensor, valid until the next call."""
        size = prod(shape)
        if self._numbers is None or len(self._numbers) < size:
            self._numbers = like.new_empty(size)
        return self._numbers[:size].view(shape)

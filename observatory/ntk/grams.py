"""Gram matrices, half of them where they are symmetric."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

from torch import Tensor

TILE_NUMBERS = 2**23  # in one temporary matrix: larger ones cost page faults on a CPU
BLOCKED_ROWS = 128  # of a symmetric matrix; fewer are not worth several calls


def add_gram(out: Tensor, rows: Tensor, columns: Tensor | None = None, *, block: int = 0) -> None:
    """out += rows columnsᵀ; without `columns` rows rowsᵀ, of which the blocks above the diagonal are enough.

    Args:
        out: (n, m), changed in place.
        rows: (n, P).
        columns: (m, P).
        block: rows of a block; 0 for all.
    """
    if columns is not None:
        out.addmm_(rows, columns.T)
        return
    block = block or len(rows)
    for k in range(0, len(rows), block):
        out[: k + block, k : k + block].addmm_(rows[: k + block], rows[k : k + block].T)  # narrow is faster


def add_grams(out: Tensor, pairs: Iterable[tuple[Tensor, Tensor | None]], *, block: int) -> None:
    """out[(d, i), (e, j)] += Σ left_di · right_ej over pairs of rows, without copies of these.

    Args:
        out: (D·n, E·m), changed in place; without anything on the right its blocks above the diagonal.
        pairs: left (D, n, P) and right (E, m, P), or None for the left once more; each is contiguous or the
            transpose of what is, (n, D, P).
        block: rows of a block of whole directions.
    """
    turned: Tensor | None = None  # sum of those with rows (i, d) and columns (j, e)
    symmetric = False
    for left, right in pairs:
        other = left if right is None else right
        if left.is_contiguous() and other.is_contiguous():
            add_gram(out, left.flatten(0, 1), None if right is None else right.flatten(0, 1), block=block)
            continue
        rows, columns = (t.transpose(0, 1).flatten(0, 1) for t in (left, other))
        shape = (*left.shape[1::-1], *other.shape[1::-1])
        turned, symmetric = out.new_zeros(shape) if turned is None else turned, right is None
        add_gram(turned.view(out.shape), rows, None if symmetric else columns, block=block_rows(*shape[:2]))
    if turned is not None:
        if symmetric:
            mirror(turned.view(out.shape), block_rows(*turned.shape[:2]))
        turned = turned.permute(1, 0, 3, 2)
        out.view(turned.shape).add_(turned)


def block_rows(d: int, n: int) -> int:
    """Rows of a block of a symmetric matrix (D·n, D·n): whole directions, a quarter of them or all."""
    return -(-d // 4) * n if d * n >= BLOCKED_ROWS else d * n  # of 16 blocks 10 are computed


def mirror(out: Tensor, block: int) -> None:
    """Copy the blocks above the diagonal of a square matrix to below it, in place."""
    for k in range(0, len(out), block):
        out[k + block :, k : k + block] = out[k : k + block, k + block :].T


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

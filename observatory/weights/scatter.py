"""The scatter of a trajectory on its shorter side: as a matrix, as an operator, and its moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from observatory.weights.trajectory import column_blocks, column_means, row_blocks

STRIPS = 16  # in which K is formed and squared


@dataclass(frozen=True, eq=False)
class Scatter:
    """K = ZZᵀ of T snapshots of P ≥ T weights, K = ZᵀZ for P < T: n × n, n = min(T, P), in float64.

    Z are the snapshots minus their mean, and minus their linear trend in time if `trend` is off. It exists in
    blocks only: beside the rows stand a few hundredths of their memory, and K where it is asked for.
    """

    rows: Tensor  # (T, P), any floating type
    trend: bool = True

    @property
    def size(self) -> int:
        """n."""
        return min(self.rows.shape)

    @property
    def wide(self) -> bool:
        """Whether there are at least as many weights as snapshots."""
        return self.rows.shape[1] >= self.rows.shape[0]

    def blocks(self) -> Iterator[Tensor]:
        """Parts B (n, w), float64, with K = Σ BBᵀ."""
        if not self.wide:
            yield from (block.mT for block in self.snapshots())
            return
        for block in column_blocks(self.rows):
            yield block if self.trend else block.addr_(self._time, self._time @ block, alpha=-1)

    def snapshots(self) -> Iterator[Tensor]:
        """Some rows of Z at a time, (h, P), float64."""
        start = 0
        for block in row_blocks(self.rows, self._mean):
            stop = start + len(block)
            yield block if self.trend else block.addr_(self._time[start:stop], self._slope, alpha=-1)
            start = stop

    def matrix(self) -> Tensor:
        """K, (n, n). Cost about T P n flop: products are taken below the diagonal only."""
        gram = self.rows.new_zeros(self.size, self.size, dtype=torch.float64)
        strips = self._strips(4 if self.size > 128 else 1)
        for block in self.blocks():
            for top, end in strips:
                gram[top:end, :end].addmm_(block[top:end], block[:end].mT)
        for top, end in strips:  # the other triangle, in place
            gram[:top, top:end] = gram[top:end, :top].mT
        return gram

    def times(self, vectors: Tensor) -> Tensor:
        """K v of vectors (n, b)."""
        image = torch.zeros_like(vectors)
        for block in self.blocks():
            image.addmm_(block, block.mT @ vectors)
        return image

    def moments(self) -> tuple[Tensor, Tensor]:
        """Tr K and Tr K², scalars, of which K need not be kept: it passes by in strips."""
        trace = square = self.rows.new_zeros((), dtype=torch.float64)
        for top, end in self._strips(STRIPS):
            strip = self.rows.new_zeros(end - top, end, dtype=torch.float64)
            for block in self.blocks():
                strip.addmm_(block[top:end], block[:end].mT)
            trace = trace + strip[:, top:].trace()
            below, diagonal = (torch.linalg.vector_norm(part) for part in (strip[:, :top], strip[:, top:]))
            square = square + 2 * below.square() + diagonal.square()
        return trace, square

    def _strips(self, count: int) -> list[tuple[int, int]]:
        height = -(-self.size // count)
        return [(top, min(top + height, self.size)) for top in range(0, self.size, height)]

    @cached_property
    def _time(self) -> Tensor:
        time = torch.arange(len(self.rows), dtype=torch.float64, device=self.rows.device)
        time = time - time.mean()
        return time / time.norm()

    @cached_property
    def _mean(self) -> Tensor:
        return column_means(self.rows)

    @cached_property
    def _slope(self) -> Tensor:
        """τ·Z along the unit vector τ of time, (P,): the constant drops out."""
        slope = torch.zeros_like(self._mean)
        start = 0
        for block in row_blocks(self.rows, self._mean):
            slope += self._time[start : start + len(block)] @ block
            start += len(block)
        return slope

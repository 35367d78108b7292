"""Dimension against scale by decimation: fewer points lie farther apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.dimension.neighbours import Neighbours, nearest_neighbours, samples_of
from observatory.dimension.ratios import Method, two_nn
from observatory.dimension.result import FEWEST


@dataclass(frozen=True, eq=False)
class BlockDimension:
    """TwoNN within b disjoint random blocks of the samples; shapes (divisions,), float64."""

    blocks: Tensor  # b, int64
    points: Tensor  # in each block, ⌊N/b⌋, int64
    value: Tensor  # mean over the blocks
    deviation: Tensor  # standard deviation over the blocks, NaN for a single one
    scale: Tensor  # mean distance to the nearest neighbour within a block


def block_analysis(
    x: Tensor,
    *,
    blocks: Sequence[int] = (1, 2, 4, 8, 16),
    method: Method = "ols",
    generator: torch.Generator | None = None,
) -> BlockDimension:
    """Dimension of disjoint random blocks of N/b samples (Facco et al. 2017, Sci. Rep. 7, 12140).

    Noise off a manifold is seen where points are dense and not where they are sparse. `gride` gives the same
    curve with less variance, from one search.

    Args:
        x: samples × units, (N, D).
        blocks: numbers of blocks b, at least 1, each with 20 samples or more.
        method: of `two_nn`.
        generator: draws the blocks; default one of its own.

    Raises:
        ValueError: if x is not samples × units, or a block would be too small.
    """
    points = samples_of(x)
    if not blocks or min(blocks) < 1 or len(points) // max(blocks) < FEWEST:
        raise ValueError(
            f"{len(points)} samples cannot be cut into {list(blocks)} blocks of at least {FEWEST} samples"
        )
    draw = torch.Generator().manual_seed(0) if generator is None else generator
    order = torch.randperm(len(points), generator=draw, device=draw.device).to(points.device)
    found = [
        _within([nearest_neighbours(points[rows], 16) for rows in _cut(order, b)], method) for b in blocks
    ]
    value, deviation, scale = (torch.stack(column) for column in zip(*found, strict=True))
    number = torch.tensor(blocks, device=points.device)
    return BlockDimension(number, len(points) // number, value, deviation, scale)


def _cut(order: Tensor, blocks: int) -> list[Tensor]:
    size = len(order) // blocks
    return list(order[: size * blocks].split(size))


def _within(parts: list[Neighbours], method: Method) -> tuple[Tensor, Tensor, Tensor]:
    found = [two_nn(part, method=method) for part in parts]
    values = torch.stack([one.value for one in found])
    near = torch.stack([one.near for one in found]).mean()
    deviation = values.std() if len(values) > 1 else torch.full_like(near, torch.nan)
    return values.mean(), deviation, near

"""Dimension from the growth of neighbour distances about each point."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from observatory.dimension.halves import inverse_dimensions_in_halves
from observatory.dimension.neighbours import Neighbours, ratio_or_nan
from observatory.dimension.result import DEPTH, FEWEST, Dimension, neighbours_of, undefined

Combine = Literal["mackay", "mean", "median"]


def levina_bickel(x: Tensor | Neighbours, *, k: int = 20, combine: Combine = "mackay") -> Dimension:
    """Maximum likelihood dimension about each point, 1/m = Σ_{j<k} ln(r_k/r_j)/(k-1), combined over points.

    Levina, Bickel 2004 (NIPS 17); MacKay, Ghahramani 2005 for the harmonic mean.

    Args:
        x: samples × units, (N, D), or their neighbours.
        k: number of neighbours, at least 3.
        combine: "mackay", the harmonic mean, unbiased for homogeneous data; "mean", biased up by (k-1)/(k-2);
            or "median".

    Returns:
        A scalar with the standard error of random halves.

    Raises:
        ValueError: if not 3 ≤ k < N, or `combine` is unknown.
    """
    if combine not in get_args(Combine):
        raise ValueError(f"combine must be one of {', '.join(get_args(Combine))}, got {combine!r}")
    if k < 3:
        raise ValueError(f"k={k} neighbours do not determine a dimension; give at least 3")
    near = neighbours_of(x, k, max(DEPTH, 3 * k))
    if near.distances.shape[1] < k:
        return undefined(near, (), 0)
    inverse = _inverse(near.logarithms[:, :k])
    valid = inverse.isfinite().sum()
    if valid < FEWEST:
        return undefined(near, (), valid)
    error = partial(_scatter, near, k, combine)
    first, last = near.scales[0], near.scales[k - 1]
    return Dimension(combined(inverse, combine), error, valid, first, last, near.dropped)


def _scatter(near: Neighbours, k: int, combine: Combine) -> Tensor:
    """Standard error from random halves."""
    halves = inverse_dimensions_in_halves(near, k, max(DEPTH, 3 * k))
    return combined(torch.where(halves > 0, halves, torch.nan), combine).std()


def inverse_dimensions(distances: Tensor, k: int = 20) -> Tensor:
    """1/m of each point, shape (..., N) from distances (..., N, ≥ k); NaN where all k are equal."""
    return _inverse(distances[..., :k].log())


def _inverse(logarithms: Tensor) -> Tensor:
    k = logarithms.shape[-1]
    weights = logarithms.new_full((k,), -1 / (k - 1))
    weights[-1] = 1
    tied = logarithms[..., -1] == logarithms[..., 0]  # the sum of what is equal may differ from zero
    return ratio_or_nan(logarithms @ weights).masked_fill_(tied, torch.nan)


def combined(inverse: Tensor, combine: Combine = "mackay") -> Tensor:
    """One dimension out of the inverse ones of all points, (...) from (..., N), NaN left out."""
    if combine == "mackay":
        return 1 / inverse.nanmean(-1)
    if combine == "mean":
        return (1 / inverse).nanmean(-1)
    return 1 / inverse.nanquantile(0.5, -1)

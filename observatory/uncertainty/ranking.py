"""Rank statistics: does the score put the rows into the right order?"""

from __future__ import annotations

import torch
from torch import Tensor

SIMULATED = 100_000  # rows, at most, of the simulation of the ceiling
SEED = 7_046_029_254  # of that simulation


def mid_ranks(values: Tensor) -> Tensor:
    """Ranks 1 ... n of (n,); equal values share the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)  # sorted
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's ρ of two columns (n,); NaN if one is constant."""
    x, y = (mid_ranks(v) - (len(v) + 1) / 2 for v in (a, b))
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()


def spearman_ceiling(std: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """ρ(|r|, σ) that a perfectly calibrated Gaussian with these σ has: of |ε|σ with simulated ε.

    For ln σ of standard deviation 0.1, 0.3, 0.5, 1, 2 it is 0.11, 0.30, 0.46, 0.69, 0.88: a low ρ alone is no
    failure.

    Args:
        std: σ, (n,).
        generator: of ε, on the CPU; default one of its own.
    """
    if generator is None:  # a seed that nobody takes: ε must not be the numbers that σ came from
        generator = torch.Generator().manual_seed(SEED)
    sigma = std.repeat(max(1, min(20, SIMULATED // max(len(std), 1))))
    noise = torch.randn(len(sigma), generator=generator, dtype=torch.float64).to(std.device)
    return spearman(noise.abs() * sigma, sigma)


def auroc(negative: Tensor, positive: Tensor) -> Tensor:
    """Probability that a positive row has a higher score than a negative one, ties counted half (mid-ranks).

    Args:
        negative, positive: scores, (n,) and (m,).
    """
    n, m = len(negative), len(positive)
    if n == 0 or m == 0:
        return torch.full((), torch.nan, dtype=torch.float64)
    ranks = mid_ranks(torch.cat([negative, positive]).double())
    return (ranks[n:].sum() - m * (m + 1) / 2) / (n * m)

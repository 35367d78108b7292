"""Three ways to contract a layer, and which takes the fewest operations and the least memory."""

from __future__ import annotations

from typing import Literal

from observatory.ntk.factors import Factors, SiteFactors
from observatory.ntk.grams import TILE_NUMBERS

Way = Literal["forming at once", "forming later", "by sites"]

GROUP = 4  # directions whose gradients are formed together: patches are read once for all of them
PER_PASS = 32  # multiplications of a matrix product that take as long as writing and reading one number
HALF = 0.6  # of a symmetric matrix that is computed


def paired_way(uses: list[Factors], others: list[Factors], d: int, *, same: bool) -> Way:
    """For Σ_d G_d G_dᵀ: form the gradients of each direction, or Gram matrices over pairs of sites."""
    factor, other = uses[0], others[0]
    if len(uses) > 1 or not isinstance(factor, SiteFactors):
        return "forming at once"
    s, n, m, half = factor.sites, factor.n, other.n, HALF if same else 1.0
    width = factor.groups * factor.outputs
    times = max(1, d * n * s * width // TILE_NUMBERS)  # that the overlaps are computed
    by_sites = half * n * m * s * s * (times * (factor.overlapping + factor.groups * PER_PASS) + d * width)
    sides = n if same else n + m
    formed = d * sides * (factor.forming + PER_PASS * factor.numbers) + d * n * m * factor.numbers
    pairs = _pair_sites(factor, other)
    return "by sites" if pairs and (s == 1 or by_sites <= formed) else "forming at once"


def crossed_way(uses: list[Factors], others: list[Factors], d: int, e: int, *, same: bool) -> Way:
    """For G_d G_eᵀ of all pairs of directions.

    What is kept of each direction until all are there is B, or the gradient where that is smaller.
    """
    factor, other = uses[0], others[0]
    if len(uses) > 1 or not isinstance(factor, SiteFactors):
        return "forming at once"
    s, o, g, n, m = factor.sites, factor.outputs, factor.groups, factor.n, other.n
    half = HALF if same else 1.0
    moved = n * m * s * g * e * o
    by_sites = half * (n * m * s * s * factor.overlapping + moved * (s + d + PER_PASS))
    sides = n * d if same else n * d + m * e
    formed = sides * (factor.forming + PER_PASS * factor.numbers) + half * n * d * m * e * factor.numbers
    if _pair_sites(factor, other) and (s == 1 or by_sites <= formed):
        return "by sites"
    return "forming at once" if factor.numbers <= s * g * o else "forming later"


def _pair_sites(factor: SiteFactors, other: Factors) -> bool:
    """Whether both sides have as many sites: images or sequences may be of unequal size."""
    return isinstance(other, SiteFactors) and factor.sites == other.sites


def norms_way(uses: list[Factors], d: int) -> Way:
    """For ‖G_d‖² of every example: form the gradients, or contract its own pairs of sites."""
    factor = uses[0]
    if len(uses) > 1 or not isinstance(factor, SiteFactors):
        return "forming at once"
    s, g, width = factor.sites, factor.groups, factor.groups * factor.outputs
    overlaps = s * s * (factor.overlapping + g * PER_PASS) + PER_PASS * factor.copied
    by_sites = overlaps + d * s * s * (width + 2 * g * PER_PASS)
    formed = d * (factor.forming + PER_PASS * factor.numbers)
    return "by sites" if s == 1 or by_sites <= formed else "forming at once"

"""Contraction over pairs of sites: Σ_st (U_i[s]·U_j[t]) (B_i[s]·B_j[t]), without forming gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from observatory.ntk.factors import SiteFactors
from observatory.ntk.grams import TILE_NUMBERS, Scratch, block_rows, tiles


def add_paired_by_sites(
    out: Tensor, factor: SiteFactors, other: SiteFactors, b: list[Tensor], c: list[Tensor]
) -> None:
    """Equal directions: out[i, j] += Σ_d Σ_st (U_i[s]·U_j[t]) (B_di[s]·C_dj[t]).

    Args:
        out: (n, m), changed in place.
        factor, other: the call on the left and on the right examples.
        b, c: B of the left and right examples, some directions after the other, (D', n, g, s, o) and
            (D', m, g, s, o) each; the same list if they are the same examples.
    """
    s, same = factor.sites, b is c
    one = _arranged(b, (2, 1, 3, 0, 4), 3).flatten(3).flatten(1, 2)  # (g, n·s, D·o)
    two = one if same else _arranged(c, (2, 1, 3, 0, 4), 3).flatten(3).flatten(1, 2)
    for i, j in tiles(len(out), out.shape[1], _side(len(out), s, s), symmetric=same):
        rows, columns = (slice(at.start * s, at.stop * s) for at in (i, j))
        product = (one[:, rows] @ two[:, columns].mT).mul_(factor.overlaps(other, i, j))
        product = product[0] if len(product) == 1 else product.sum(0)
        if s > 1:
            product = product.view(i.stop - i.start, s, -1, s).sum(3).sum(1)
        out[i, j] += product
        if same and i != j:
            out[j, i] += product.T


def add_crossed_by_sites(
    out: Tensor, factor: SiteFactors, other: SiteFactors, b: list[Tensor], c: list[Tensor]
) -> None:
    """All pairs of directions: out[(d, i), (e, j)] += Σ_st (U_i[s]·U_j[t]) (B_di[s]·C_ej[t]).

    Args:
        out: (D·n, E·m), changed in place; if `c` is `b`, only the blocks above the diagonal.
        factor, other, b, c: as for `add_paired_by_sites`.
    """
    n, m, s, o, same = factor.n, other.n, factor.sites, factor.outputs, b is c
    if s == 1:
        _add_crossed_vectors(out, factor, other, b, c)
        return
    left = _arranged(b, (2, 1, 0, 3, 4), 2).flatten(3)  # (g, n, D, s·o)
    right = _arranged(c, (2, 0, 1, 3, 4), 1)  # (g, E, m, s, o)
    d, e = left.shape[2], right.shape[1]
    out, scratch = out.view(d, n, e, m), Scratch()
    for i, j in tiles(n, m, _side(n, s, max(e * o, s)), symmetric=same):
        rows, columns = i.stop - i.start, j.stop - j.start
        found = out.new_zeros(rows, d, e * columns)
        for g, overlaps in enumerate(factor.overlaps(other, i, j)):
            weights = overlaps.view(rows * s, columns, s).transpose(0, 1)  # (j, i·s, t)
            moved = scratch.of((e, columns, rows * s, o), like=out)  # Σ_t (U_i[s]·U_j[t]) C_ej[t]
            for target, one in zip(moved, right[g, :, j], strict=True):
                torch.bmm(weights, one, out=target)
            found.baddbmm_(left[g, i], moved.view(e * columns, rows, s * o).permute(1, 2, 0))
        block = found.view(rows, d, e, columns).permute(1, 0, 2, 3)
        out[:, i, :, j] += block
        if same and i != j:
            out[:, j, :, i] += block.permute(2, 3, 0, 1)


def _add_crossed_vectors(
    out: Tensor, factor: SiteFactors, other: SiteFactors, b: list[Tensor], c: list[Tensor]
) -> None:
    """One site: out[(d, i), (e, j)] += Σ_g (U_i·U_j) (B_di·C_ej)."""
    n, m, same = factor.n, other.n, b is c
    one = _arranged(b, (2, 0, 1, 3, 4), 1).squeeze(3)  # (g, D, n, o)
    two = one if same else _arranged(c, (2, 0, 1, 3, 4), 1).squeeze(3)
    d, e = one.shape[1], two.shape[1]
    step = block_rows(d, n) // n if same else d
    for g, overlaps in enumerate(factor.overlaps(other, slice(0, n), slice(0, m))):
        for k in range(0, d, step):
            left, right = (slice(k + step), slice(k, k + step)) if same else (slice(None), slice(None))
            product = one[g, left].flatten(0, 1) @ two[g, right].flatten(0, 1).T
            target = out.view(d, n, e, m)[left, :, right]
            target.addcmul_(product.view(target.shape), overlaps[:, None, :])


def _arranged(pieces: list[Tensor], order: tuple[int, ...], axis: int) -> Tensor:
    """Pieces with permuted axes, one after the other along `axis`, contiguous."""
    permuted = [piece.permute(order) for piece in pieces]
    return permuted[0].contiguous() if len(permuted) == 1 else torch.cat(permuted, axis)


def _side(n: int, s: int, width: int) -> int:
    """Examples of a square tile with i·s·j·width numbers."""
    return min(n, max(1, math.isqrt(TILE_NUMBERS // (s * width))))

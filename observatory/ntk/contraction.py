"""Structured contraction: the kernel layer by layer, without forming the Jacobian."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat

import torch
from torch import Tensor

from observatory.looking.calls import RecordedForward
from observatory.ntk.claims import Claim, factors_of
from observatory.ntk.factors import Factors, SiteFactors
from observatory.ntk.grams import TILE_NUMBERS, Scratch, add_gram, add_grams, block_rows
from observatory.ntk.sites import add_crossed_by_sites, add_paired_by_sites
from observatory.ntk.ways import GROUP, Way, crossed_way, paired_way

BATCHED_NUMBERS = (2**19, 2**26)  # gradients of one batched backward pass, on a CPU and on a GPU


@dataclass(eq=False)
class Side:
    """One block of examples: its forward pass and the output directions asked of it."""

    record: RecordedForward
    directions: Tensor  # (D, n, *output)
    claims: tuple[Claim, ...]
    factors: list[list[Factors]] = field(init=False)  # by claim, by use

    def __post_init__(self) -> None:
        self.factors = [factors_of(claim, self.record, self.d) for claim in self.claims]
        self._asked = {  # of what gradients are asked, by position of the call
            k: factor.asked
            for claim, uses in zip(self.claims, self.factors, strict=True)
            for k, factor in zip(claim.calls, uses, strict=True)
        }
        self._scratch = Scratch()

    @property
    def d(self) -> int:
        """Number of directions."""
        return len(self.directions)

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.directions.shape[1]

    @property
    def at_once(self) -> int:
        """Directions of one backward pass: several for small networks, where calls cost more than sums."""
        numbers = sum(self.record.calls[k].shape.numel() for k in self._asked)
        allowed = BATCHED_NUMBERS[self.directions.device.type == "cuda"] // max(numbers, 1)
        return max(1, min(allowed, self.d))

    def backward(self, at_once: int, *, last: bool = False) -> Iterator[list[Tensor]]:
        """For every claim B (D', n, g, s, o), or gradients (D', n, P) where there are no sites.

        Args:
            at_once: directions of one pass.
            last: whether this side is not needed again.
        """
        for start in range(0, self.d, at_once):
            ends = last and start + at_once >= self.d
            asked = list(self._asked.values())
            if at_once > 1:
                directions = self.directions[start : start + at_once]
                gradients = self.record.gradients(directions, asked, last=ends)
            else:
                single = self.record.gradients(self.directions[start], asked, last=ends)
                gradients = [g[None] for g in single]
            found = dict(zip(self._asked, gradients, strict=True))
            yield [
                self._piece(factors, [found[k] for k in claim.calls])
                for claim, factors in zip(self.claims, self.factors, strict=True)
            ]

    def _piece(self, uses: list[Factors], gradients: list[Tensor]) -> Tensor:
        """The gradient of a parameter that is used repeatedly is the sum over its uses."""
        b = [factor.backward(one) for factor, one in zip(uses, gradients, strict=True)]
        if site_factor(uses) is not None:
            return b[0]
        each = [factor.parameter_gradients(one) for factor, one in zip(uses, b, strict=True)]
        joined = [torch.cat([g.flatten(2) for g in found.values()], 2) for found in each]
        return joined[0] if len(joined) == 1 else torch.stack(joined).sum(0)

    def rows(self, k: int, pieces: list[Tensor], n: int = 0) -> Iterator[Tensor]:
        """Gradients (D', n, p) of claim k from what `backward` gave, some of the parameters after the others.

        Each is valid until the next is asked for. Sides that are to be multiplied cut the parameters for the
        same n, the number of examples on the larger side (default: this one).
        """
        factor = site_factor(self.factors[k])
        if factor is None:
            yield pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            return
        d = sum(len(piece) for piece in pieces)
        step = _outputs_at_once(factor, d * (n or self.n))
        for start in range(0, factor.outputs, step):
            at = slice(start, min(start + step, factor.outputs))
            yield factor.gradients(pieces, at, self._scratch)


def add_paired(left: Side, right: Side, outs: list[Tensor]) -> None:
    """outs[k][i, j] += Σ_d ⟨∂(v_id·f_i), ∂(v_jd·f_j)⟩ for each claim k; several may share a tensor (n, m)."""
    same, n = right is left, max(left.n, right.n)
    pairs = _matched(left, right)
    ways = [paired_way(uses, others, left.d, same=same) for uses, others in pairs]
    mine: list[list[Tensor]] = [[] for _ in ways]
    theirs: list[list[Tensor]] = mine if same else [[] for _ in ways]

    def contract(k: int) -> None:
        if ways[k] == "by sites":
            add_paired_by_sites(outs[k], *_sites(pairs[k], mine[k], theirs[k]))
        else:
            columns = repeat(None) if same else right.rows(k, theirs[k], n)
            for one, two in zip(left.rows(k, mine[k], n), columns, strict=False):
                for row, column in zip(one, one if two is None else two, strict=True):
                    outs[k].addmm_(row, column.T)
        mine[k].clear()
        theirs[k].clear()

    at_once = min(left.at_once, right.at_once)
    for b, c in zip(left.backward(at_once), repeat(None) if same else right.backward(at_once), strict=False):
        for k, way in enumerate(ways):
            mine[k].append(b[k])
            if c is not None:
                theirs[k].append(c[k])
            if _enough(way, mine[k]):
                contract(k)
    for k in range(len(ways)):
        if mine[k]:
            contract(k)


def _matched(left: Side, right: Side) -> list[tuple[list[Factors], list[Factors]]]:
    """Factors of each claim on both sides, made to form equal columns where images are of unequal size."""
    pairs = list(zip(left.factors, right.factors, strict=True))
    for one, other in ((site_factor(uses), site_factor(others)) for uses, others in pairs):
        if one is not None and other is not None and one.summing != other.summing:
            one.summing = other.summing = False
    return pairs


def _enough(way: Way, pieces: list[Tensor]) -> bool:
    """Whether to contract what was kept so far."""
    if way == "by sites":
        return sum(piece.numel() for piece in pieces) > TILE_NUMBERS
    return sum(len(piece) for piece in pieces) >= GROUP


def add_crossed(left: Side, right: Side, outs: list[Tensor]) -> None:
    """outs[k][(d, i), (e, j)] += ⟨∂(v_id·f_i), ∂(v_je·f_j)⟩ for each claim k, (D·n, E·m).

    If the sides are the same, only the blocks above the diagonal (`block_rows`) are right.
    """
    same, n, block = right is left, max(left.n, right.n), block_rows(left.d, left.n)
    pairs = _matched(left, right)
    ways = [crossed_way(uses, others, left.d, right.d, same=same) for uses, others in pairs]
    mine = _gathered(left, ways, n)
    theirs = mine if same else _gathered(right, ways, n)
    for k, way in enumerate(ways):
        if way == "by sites":
            add_crossed_by_sites(outs[k], *_sites(pairs[k], mine[k], theirs[k]))
        elif way == "forming later":
            columns = repeat(None) if same else right.rows(k, theirs[k], n)
            add_grams(outs[k], zip(left.rows(k, mine[k], n), columns, strict=False), block=block)
        else:
            columns_at_once = None if same else torch.cat(theirs[k]).flatten(0, 1)
            add_gram(outs[k], torch.cat(mine[k]).flatten(0, 1), columns_at_once, block=block)
        mine[k] = theirs[k] = []


def _gathered(side: Side, ways: list[Way], n: int) -> list[list[Tensor]]:
    """What is kept of every claim in all directions: gradients (D', n, P) if formed at once, else B."""
    kept: list[list[Tensor]] = [[] for _ in ways]
    waiting: list[list[Tensor]] = [[] for _ in ways]

    def form(k: int) -> None:
        parts = [rows.clone() for rows in side.rows(k, waiting[k], n)]
        kept[k].append(parts[0] if len(parts) == 1 else torch.cat(parts, 2))
        waiting[k].clear()

    for b in side.backward(side.at_once):
        for k, way in enumerate(ways):
            (waiting if way == "forming at once" else kept)[k].append(b[k])
            if way == "forming at once" and _enough(way, waiting[k]):
                form(k)
    for k in range(len(ways)):
        if waiting[k]:
            form(k)
    return kept


def site_factor(uses: list[Factors]) -> SiteFactors | None:
    """The factor of a claim whose gradients are formed from one B, if it is such a one."""
    factor = uses[0]
    return factor if len(uses) == 1 and isinstance(factor, SiteFactors) else None


def _sites(
    pair: tuple[list[Factors], list[Factors]], mine: list[Tensor], theirs: list[Tensor]
) -> tuple[SiteFactors, SiteFactors, list[Tensor], list[Tensor]]:
    """Factors of the two sides, and their B by sites: the same list if it was the same."""
    left, right = (site_factor(uses) for uses in pair)
    assert left is not None and right is not None  # or there are no sites
    b = [left.by_sites(piece) for piece in mine]
    return left, right, b, b if theirs is mine else [right.by_sites(piece) for piece in theirs]


def _outputs_at_once(factor: SiteFactors, rows: int) -> int:
    """Outputs whose gradients make one tile: in equal parts, multiples of 16, as matrix products like it."""
    fitting = max(1, factor.tile // (rows * factor.groups * factor.columns))
    parts = -(-factor.outputs // fitting)
    step = -(-factor.outputs // parts)
    return -(-step // 16) * 16 if step > 16 else step

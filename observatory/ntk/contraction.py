"""Structured contraction: the kernel layer by layer, without forming the Jacobian."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from observatory.looking.calls import RecordedForward
from observatory.ntk.claims import Claim, factors_of
from observatory.ntk.factors import Factors, SiteFactors

BATCHED_NUMBERS = (2**19, 2**26)  # gradients of one batched backward pass, on a CPU and on a GPU
LARGEST_OVERLAP = 2**26  # numbers in a Gram matrix over sites


@dataclass(eq=False)
class Side:
    """One block of examples: its forward pass and the output directions asked of it."""

    record: RecordedForward
    directions: Tensor  # (D, n, *output)
    claims: tuple[Claim, ...]
    factors: list[list[Factors]] = field(init=False)  # by claim, by use

    def __post_init__(self) -> None:
        self.factors = [factors_of(claim, self.record) for claim in self.claims]
        self._positions = sorted({k for claim in self.claims for k in claim.calls})
        self._calls = [self.record.calls[k] for k in self._positions]
        self._batched: list[Tensor] | None = None

    @property
    def n(self) -> int:
        return self.directions.shape[1]

    @property
    def d(self) -> int:
        """Number of directions."""
        return len(self.directions)

    def backward(self, d: int) -> list[list[Tensor]]:
        """B of every claim and use in direction d, arranged by example."""
        if self._batched is None and self._small:
            self._batched = self.record.gradients(self.directions, self._calls)
        if self._batched is not None:
            gradients = [gradient[d] for gradient in self._batched]
        else:
            gradients = self.record.gradients(self.directions[d], self._calls)
        found = dict(zip(self._positions, gradients, strict=True))
        return [
            [factor.backward(found[k]) for k, factor in zip(claim.calls, factors, strict=True)]
            for claim, factors in zip(self.claims, self.factors, strict=True)
        ]

    @property
    def _small(self) -> bool:
        """Whether one backward pass for all directions is faster than one for each."""
        numbers = len(self.directions) * sum(call.shape.numel() for call in self._calls)
        return len(self.directions) > 1 and numbers <= BATCHED_NUMBERS[self.directions.device.type == "cuda"]


def paired(left: Side, right: Side) -> list[Tensor]:
    """Σ_d ⟨∂(v_id·f_i), ∂(v_jd·f_j)⟩, (n, m), one for each claim."""
    directions = len(left.directions)
    ways = [_way(uses, others, directions) for uses, others in zip(left.factors, right.factors, strict=True)]
    kernels = [left.directions.new_zeros(left.n, right.n) for _ in ways]
    overlaps = {
        k: left.factors[k][0].overlaps(right.factors[k][0])  # type: ignore[attr-defined]
        for k, way in enumerate(ways)
        if way != "formed"
    }
    single: dict[int, list[tuple[Tensor, Tensor]]] = {k: [] for k, way in enumerate(ways) if way == "single"}
    for d in range(directions):
        b_left = left.backward(d)
        b_right = b_left if right is left else right.backward(d)
        for k, way in enumerate(ways):
            if way == "single":
                single[k].append((b_left[k][0], b_right[k][0]))
            elif way == "sites":
                kernels[k] += _site_gram(overlaps[k], b_left[k][0], b_right[k][0])
            else:
                rows = joint_gradients(left.factors[k], b_left[k])
                columns = rows if right is left else joint_gradients(right.factors[k], b_right[k])
                kernels[k].addmm_(rows, columns.T)
    for k, pairs in single.items():  # one product for all directions
        rows = torch.cat([one for one, _ in pairs], -1).squeeze(2).transpose(0, 1)  # (groups, n, D·outputs)
        columns = (
            rows if right is left else torch.cat([two for _, two in pairs], -1).squeeze(2).transpose(0, 1)
        )
        kernels[k] = (rows @ columns.mT).mul_(overlaps[k]).sum(0)
    return kernels


def crossed(left: Side, right: Side) -> Iterator[Tensor]:
    """⟨∂(v_id·f_i), ∂(v_je·f_j)⟩, (n, D, m, E), for each claim in turn."""
    b_left = [left.backward(d) for d in range(len(left.directions))]
    b_right = b_left if right is left else [right.backward(d) for d in range(len(right.directions))]
    for k, (uses, others) in enumerate(zip(left.factors, right.factors, strict=True)):
        factor, other = uses[0], others[0]
        if len(uses) == 1 and isinstance(factor, SiteFactors) and isinstance(other, SiteFactors):
            one = torch.stack([b[k][0] for b in b_left])  # (D, n, groups, sites, outputs)
            two = one if right is left else torch.stack([b[k][0] for b in b_right])
            if _crossed_by_sites(factor, other, len(one), len(two)):
                yield _crossed_site_gram(factor.overlaps(other), one, two)
                continue
            rows = factor.gradients(one).transpose(0, 1)  # (n, D, P)
            columns = rows if right is left else other.gradients(two).transpose(0, 1)
        else:
            rows = torch.stack([joint_gradients(uses, b[k]) for b in b_left], 1)
            columns = (
                rows if right is left else torch.stack([joint_gradients(others, b[k]) for b in b_right], 1)
            )
        yield (
            (rows.flatten(0, 1) @ columns.flatten(0, 1).T)
            .unflatten(0, rows.shape[:2])
            .unflatten(2, columns.shape[:2])
        )


def joint_gradients(uses: list[Factors], b: list[Tensor]) -> Tensor:
    """Per-example gradients (n, P) of one claim: the sum over the uses of a parameter that is used
    repeatedly.
    """
    if len(uses) == 1:
        factor = uses[0]
        return (
            factor.gradients(b[0])
            if isinstance(factor, SiteFactors)
            else _rows(factor.parameter_gradients(b[0]))
        )
    each = [_rows(factor.parameter_gradients(one)) for factor, one in zip(uses, b, strict=True)]
    return torch.stack(each).sum(0)


def _rows(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten(1) for g in gradients.values()], 1)


# The two ways of contracting over sites, and which is cheaper


def _way(uses: list[Factors], others: list[Factors], directions: int) -> Literal["formed", "sites", "single"]:
    """Whether to form the gradients, or Gram matrices over sites: what needs fewer operations."""
    factor, other = uses[0], others[0]
    if len(uses) > 1 or not isinstance(factor, SiteFactors) or not isinstance(other, SiteFactors):
        return "formed"
    s, o, g = factor.sites, factor.outputs, factor.groups
    if s == 1:
        return "single"
    n, m = factor.n, other.n
    by_sites = n * m * s * s * (factor.overlapping / directions + g * (o + 2))
    formed = (n + m) / 2 * factor.forming + n * m * factor.numbers
    return "sites" if by_sites <= formed and n * m * s * s * g <= LARGEST_OVERLAP else "formed"


def _site_gram(overlaps: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Σ_g Σ_st (U_i[s]·U_j[t]) (B_i[s]·B_j[t])."""
    n, m = len(left), len(right)
    one = left.transpose(0, 1).flatten(1, 2)  # (groups, n·sites, outputs)
    two = one if right is left else right.transpose(0, 1).flatten(1, 2)
    product = (one @ two.mT).mul_(overlaps).sum(0)
    return product.reshape(n, -1, m, right.shape[2]).sum((1, 3)) if left.shape[2] > 1 else product


def _crossed_by_sites(factor: SiteFactors, other: SiteFactors, d: int, e: int) -> bool:
    s, o, g = factor.sites, factor.outputs, factor.groups
    n, m = factor.n, other.n
    if s == 1:
        return True
    by_sites = n * m * (s * s * (factor.overlapping + g * e * o) + g * d * e * s * o)
    formed = (n * d + m * e) / 2 * factor.forming + n * d * m * e * factor.numbers
    return by_sites <= formed and g * n * m * s * e * o < 2**27


def _crossed_site_gram(overlaps: Tensor, left: Tensor, right: Tensor) -> Tensor:
    d, n, g, s, o = left.shape
    e, m = right.shape[:2]
    if s == 1:
        rows = left.permute(2, 1, 0, 3, 4).reshape(g, n * d, o)
        columns = rows if right is left else right.permute(2, 1, 0, 3, 4).reshape(g, m * e, o)
        return ((rows @ columns.mT).reshape(g, n, d, m, e) * overlaps.reshape(g, n, 1, m, 1)).sum(0)
    weights = overlaps.to(left.dtype).reshape(g, n * s, m, s).permute(0, 2, 1, 3)  # (g, m, n·s, t)
    columns = right.permute(2, 1, 3, 0, 4).reshape(g, m, s, e * o)
    moved = (weights @ columns).reshape(g, m, n, s, e, o)  # Σ_t (U_i[s]·U_j[t]) B_je[t]
    rows = left.permute(2, 1, 0, 3, 4).reshape(g, n, d, s * o)
    moved = moved.permute(0, 2, 3, 5, 1, 4).reshape(g, n, s * o, m * e)
    return (rows @ moved).sum(0).reshape(n, d, m, e)

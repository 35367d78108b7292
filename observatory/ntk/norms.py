"""Per-example gradient norms in given output directions: all that traces need, without any N × N matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from observatory.looking.calls import record_calls
from observatory.looking.model import ModelFunction
from observatory.looking.probe import Probe, rows
from observatory.ntk.blocks import Block, layer_name
from observatory.ntk.claims import claims_of
from observatory.ntk.contraction import site_factor
from observatory.ntk.factors import SiteFactors
from observatory.ntk.sizes import sizes_of
from observatory.ntk.ways import norms_way

Directions = Tensor | Callable[[Tensor, slice], Tensor]


def squared_gradient_norms(
    model: nn.Module | ModelFunction, x: Any, directions: Directions, *, max_memory: int = 2**30
) -> Tensor:
    """‖∂(v_id · f(x_i))/∂θ‖² for every direction d and example i, shape (D, N).

    One backward pass for each direction, to the activations only (Goodfellow 2015, arXiv:1510.01799, for
    layers of every kind). With v_d the unit vectors the sum over d is the diagonal of the trace-contracted
    kernel.

    Args:
        model: a module or function, looked at in evaluation mode.
        x: N examples.
        directions: v, (D, N, *output); or a function that makes those of some examples, (D, n, *output), from
            their outputs (n, *output) and their positions, a slice: one forward pass is enough then.
        max_memory: bytes that activations and gradients may take at a time.
    """
    parts = squared_gradient_norms_by_layer(model, x, directions, max_memory=max_memory)
    return torch.stack(list(parts.values())).sum(0)


def squared_gradient_norms_by_layer(
    model: nn.Module | ModelFunction, x: Any, directions: Directions, *, max_memory: int = 2**30
) -> dict[str, Tensor]:
    """The parts of `squared_gradient_norms`, whose sum it is, by layer."""
    found = [
        dict(_norms(block)) for block in _blocks(ModelFunction.of(model), x, directions, max_memory, False)
    ]
    return {name: torch.cat([part[name] for part in found], 1) for name in found[0]}


def gradient_products(
    model: nn.Module | ModelFunction, x: Any, directions: Directions, *, max_memory: int = 2**30
) -> Tensor:
    """⟨∂(v_id · f_i)/∂θ, ∂(v_ie · f_i)/∂θ⟩ of each example with itself, (N, D, D).

    With v_d the unit vectors these are the diagonal blocks Θ_ii of the full kernel. Arguments are those of
    `squared_gradient_norms`.
    """
    found = []
    for block in _blocks(ModelFunction.of(model), x, directions, max_memory, True):
        found.append(torch.stack(list(_products(block))).sum(0))
    return torch.cat(found)


def _blocks(
    function: ModelFunction, x: Any, directions: Directions, max_memory: int, crossed: bool
) -> Iterator[Block]:
    n = len(Probe(x))
    if n == 0:
        raise ValueError("there are no examples to look at: the probe is empty")
    one = sizes_of(function, x)
    size = one.block(directions=one.output.numel(), crossed=crossed, max_memory=max_memory)
    for start in range(0, n, size):
        at = slice(start, min(start + size, n))
        part = rows(x, at.start, at.stop)
        record = record_calls(function, part)
        one.check(function, part, record.output, at.stop - at.start)
        v = directions(record.output.detach(), at) if callable(directions) else directions[:, at]
        expected = record.output.shape
        if v.shape[1:] != expected:
            raise ValueError(
                f"directions have shape (D, examples, *output) = (D, {', '.join(map(str, expected))}), "
                f"got {tuple(v.shape)}"
            )
        yield Block(function, part, record, v, claims_of(function, record))


def _norms(block: Block) -> Iterator[tuple[str, Tensor]]:
    """By layer, (D, n)."""
    side = block.side
    factors = [site_factor(uses) for uses in side.factors]
    within = [
        factor.overlaps_within() if factor is not None and norms_way(uses, side.d) == "by sites" else None
        for uses, factor in zip(side.factors, factors, strict=True)
    ]
    found: list[list[Tensor]] = [[] for _ in side.claims]
    for pieces in side.backward(side.at_once, last=True):
        for k, (factor, overlaps, piece) in enumerate(zip(factors, within, pieces, strict=True)):
            if factor is not None and overlaps is not None:
                b = factor.by_sites(piece)
                found[k].append((overlaps * (b @ b.mT)).sum((2, 3, 4)))
            elif factor is not None and not factor.one_hot:
                found[k].append(factor.squared_norms(piece))
            else:
                parts = [gradients.square().sum(2) for gradients in side.rows(k, [piece])]
                found[k].append(torch.stack(parts).sum(0))
    for claim, parts in zip(side.claims, found, strict=True):
        yield layer_name(claim.names), torch.cat(parts)
    chunks = [
        {name: gradients.square().sum(2) for name, gradients in chunk.items()}
        for chunk in block.by_definition()
    ]
    for name in block.claims.fallback:
        yield name, torch.cat([chunk[name] for chunk in chunks])


def _products(block: Block) -> Iterator[Tensor]:
    """(n, D, D) of each layer."""
    side = block.side
    kept = [torch.cat(pieces) for pieces in zip(*side.backward(side.at_once, last=True), strict=True)]
    for k, (uses, b) in enumerate(zip(side.factors, kept, strict=True)):
        factor = site_factor(uses)
        if factor is None or (overlaps := _overlaps_within(factor)) is None:
            parts = (gradients.transpose(0, 1) for gradients in side.rows(k, [b]))
            yield torch.stack([part @ part.mT for part in parts]).sum(0)
        else:
            b = factor.by_sites(b)
            moved = overlaps @ b  # (D, n, g, s, o)
            one, two = (g.permute(1, 2, 0, 3, 4).flatten(3) for g in (b, moved))
            yield (one @ two.mT).sum(1)
    for gradients in block.all_by_definition().values():
        yield gradients.transpose(0, 1) @ gradients.permute(1, 2, 0)


def _overlaps_within(factor: SiteFactors) -> Tensor | None:
    """U[s]·U[t] within each example, (n, groups, s, t), where cheaper than forming gradients."""
    s, o = factor.sites, factor.outputs
    return factor.overlaps_within() if s == 1 or s * (o + 1) <= o * factor.columns else None

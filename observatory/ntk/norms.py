"""Per-example gradient norms in given output directions: all that traces need, without any N × N matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from observatory.looking.calls import record_calls
from observatory.looking.model import ModelFunction
from observatory.looking.probe import Probe
from observatory.ntk.blocks import Block, layer_name, sizes_of
from observatory.ntk.claims import claims_of
from observatory.ntk.contraction import joint_gradients
from observatory.ntk.factors import Factors, SiteFactors
from observatory.ntk.gradients import rows

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
        found.append(torch.stack([part for _, part in _products(block)]).sum(0))
    return torch.cat(found)


def _blocks(
    function: ModelFunction, x: Any, directions: Directions, max_memory: int, crossed: bool
) -> Iterator[Block]:
    n = len(Probe(x))
    if n == 0:
        raise ValueError("there are no examples to look at: the probe is empty")
    one = sizes_of(function, x)
    size = one.block(function, crossed=crossed, max_memory=max_memory)
    for start in range(0, n, size):
        at = slice(start, min(start + size, n))
        part = rows(x, at.start, at.stop)
        record = record_calls(function, part)
        one.check_output(record.output, at.stop - at.start, first=start == 0)
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
    each = [_Overlaps(uses) for uses in side.factors]
    found = [[part.norms(b) for part, b in zip(each, side.backward(d), strict=True)] for d in range(side.d)]
    for claim, parts in zip(side.claims, zip(*found, strict=True), strict=True):
        yield layer_name(claim.names), torch.stack(parts)
    for name, gradients in block.by_definition().items():
        yield name, gradients.square().sum(-1).T


def _products(block: Block) -> Iterator[tuple[str, Tensor]]:
    """By layer, (n, D, D)."""
    side = block.side
    backward = [side.backward(d) for d in range(side.d)]
    for k, (claim, uses) in enumerate(zip(side.claims, side.factors, strict=True)):
        yield layer_name(claim.names), _Overlaps(uses).products([b[k] for b in backward])
    for name, gradients in block.by_definition().items():
        yield name, gradients @ gradients.mT


class _Overlaps:
    """U[s]·U[t] within each example, where cheaper than forming gradients; kept for all directions."""

    def __init__(self, uses: list[Factors]) -> None:
        self.uses = uses
        factor = uses[0]
        self.within: Tensor | None = None  # (n, groups, sites, sites)
        if len(uses) == 1 and isinstance(factor, SiteFactors):
            s, i, o = factor.sites, factor.inputs, factor.outputs
            if s == 1 or s * (o + 1) <= o * max(i, 1):
                self.within = factor.overlaps_within()

    def norms(self, b: list[Tensor]) -> Tensor:
        """(n,) of one direction."""
        if self.within is None:
            return joint_gradients(self.uses, b).square().sum(-1)
        return (self.within * (b[0] @ b[0].mT)).sum((1, 2, 3))

    def products(self, b: list[list[Tensor]]) -> Tensor:
        """(n, D, D) of all directions."""
        if self.within is None:
            gradients = torch.stack([joint_gradients(self.uses, one) for one in b], 1)
            return gradients @ gradients.mT
        stacked = torch.stack([one[0] for one in b], 2)  # (n, groups, D, sites, outputs)
        moved = self.within[:, :, None] @ stacked
        return (stacked.flatten(3) @ moved.flatten(3).mT).sum(1)

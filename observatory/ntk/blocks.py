"""Blocks of examples, as many at a time as memory allows, by rule or, where there is none, by definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from observatory.looking.calls import LayerCall, RecordedForward, record_calls
from observatory.looking.model import ModelFunction
from observatory.ntk.claims import Claims
from observatory.ntk.contraction import Side, crossed, paired
from observatory.ntk.gradients import example_gradients, rows


@dataclass(eq=False)
class Block:
    """A block of examples with its recorded forward pass."""

    function: ModelFunction
    x: Any
    record: RecordedForward
    directions: Tensor  # (D, n, *output)
    claims: Claims

    def __post_init__(self) -> None:
        self.side = Side(self.record, self.directions, self.claims.claims)

    @property
    def n(self) -> int:
        return self.directions.shape[1]

    def parts(self, other: Block, *, crossed: bool) -> Iterator[tuple[str, Tensor]]:
        """The kernel of two blocks by layer: (n, D, m, E) if crossed, else (n, m)."""
        names = [_layer(claim.names) for claim in self.claims.claims]
        parts = _crossed(self, other) if crossed else paired(self.side, other.side)
        yield from zip(names, parts, strict=True)
        if self.claims.fallback:
            mine = self._by_definition()
            theirs = mine if other is self else other._by_definition()
            equation = "idp,jep->idje" if crossed else "idp,jdp->ij"
            for name, gradients in mine.items():
                yield name, torch.einsum(equation, gradients, theirs[name])

    def _by_definition(self) -> dict[str, Tensor]:
        found = example_gradients(self.function, self.x, self.directions, self.claims.fallback)
        return {name: gradient.flatten(2) for name, gradient in found.items()}


def _crossed(left: Block, right: Block) -> Iterator[Tensor]:
    return crossed(left.side, right.side)


def _layer(names: tuple[str, ...]) -> str:
    """The layer of parameters "a.b.weight", "a.b.bias": "a.b"; a single parameter keeps its name."""
    layers = {name.rpartition(".")[0] for name in names}
    return layers.pop() if len(names) > 1 and len(layers) == 1 else names[0]


def block_size(function: ModelFunction, x: Any, *, crossed: bool, outputs: int, max_memory: int) -> int:
    """How many examples at a time keep activations, patches and gradients below `max_memory` bytes."""
    one = record_calls(function, rows(x, 0, 1))
    activations = sum(call.shape.numel() for call in one.calls)
    patches = max((_patches(call) for call in one.calls), default=0)
    directions = outputs if crossed else 1
    largest = max(function.theta[name].numel() for name in function.selected)
    numbers = activations * (3 + (directions if crossed else 0)) + patches + 2 * directions * largest
    return max(1, max_memory // max(1, numbers * one.output.element_size()))


def _patches(call: LayerCall) -> int:
    """Numbers in U for one example."""
    shape = call.weight_shape
    if shape is None or not call.layer.startswith("conv"):
        return 0
    return call.shape.numel() // shape[0] * shape[1:].numel() * call.arguments.get("groups", 1)

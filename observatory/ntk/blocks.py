"""A block of examples: its kernel with another block, by rule or, where there is none, by definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from observatory.looking.calls import RecordedForward
from observatory.looking.model import ModelFunction
from observatory.ntk.claims import Claims
from observatory.ntk.contraction import Side, add_crossed, add_paired
from observatory.ntk.gradients import example_gradients
from observatory.ntk.grams import block_rows, mirror
from observatory.ntk.sizes import sizes_of as sizes_of

GRADIENT_NUMBERS = 2**25  # of gradients that are formed by the definition at a time, at least one direction


@dataclass(eq=False)
class Kernels:
    """Sums over layers: one of all, or one of each."""

    by_layer: bool
    sums: dict[str, Tensor] = field(default_factory=dict)

    def of(self, name: str, shape: tuple[int, int], *, like: Tensor) -> Tensor:
        """The sum to which the layer `name` contributes."""
        key = name if self.by_layer else ""
        if key not in self.sums:
            self.sums[key] = like.new_zeros(shape)
        return self.sums[key]


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
    def d(self) -> int:
        return self.side.d

    @property
    def n(self) -> int:
        return self.side.n

    def paired(self, other: Block, *, by_layer: bool) -> dict[str, Tensor]:
        """Σ_d ⟨∂(v_id·f_i), ∂(v_jd·f_j)⟩ with the examples of another block, (n, m), by layer or in all."""
        kernels, shape = Kernels(by_layer), (self.n, other.n)
        names = [layer_name(claim.names) for claim in self.claims.claims]
        add_paired(self.side, other.side, [kernels.of(name, shape, like=self.directions) for name in names])
        theirs = self.by_definition() if other is self else other.by_definition()
        for mine, others in zip(self.by_definition(), theirs, strict=True):
            for name, gradients in mine.items():
                product = torch.bmm(gradients, others[name].mT).sum(0)
                kernels.of(name, shape, like=self.directions).add_(product)
        return kernels.sums

    def crossed(self, other: Block, *, by_layer: bool) -> dict[str, Tensor]:
        """⟨∂(v_id·f_i), ∂(v_je·f_j)⟩ with the examples of another block, (n, D, m, E), by layer or in all."""
        kernels, shape = Kernels(by_layer), (self.d * self.n, other.d * other.n)
        names = [layer_name(claim.names) for claim in self.claims.claims]
        add_crossed(self.side, other.side, [kernels.of(name, shape, like=self.directions) for name in names])
        mine = self.all_by_definition()
        theirs = mine if other is self else other.all_by_definition()
        for name, gradients in mine.items():
            out = kernels.of(name, shape, like=self.directions)
            out.addmm_(gradients.flatten(0, 1), theirs[name].flatten(0, 1).T)
        if other is self:
            for out in kernels.sums.values():
                mirror(out, block_rows(self.d, self.n))
        split = (self.d, self.n, other.d, other.n)
        return {name: out.view(split).permute(1, 0, 3, 2) for name, out in kernels.sums.items()}

    def by_definition(self) -> Iterator[dict[str, Tensor]]:
        """Gradients (D', n, P) of the parameters that no rule covers, by name, some directions at a time."""
        if not self.claims.fallback:
            return
        numbers = self.n * sum(self.function.theta[name].numel() for name in self.claims.fallback)
        step = max(1, GRADIENT_NUMBERS // numbers)
        for start in range(0, self.d, step):
            v = self.directions[start : start + step]
            found = example_gradients(self.function, self.x, v, self.claims.fallback)
            # a parameter may be a single number without dimensions
            yield {name: g.reshape(*g.shape[:2], -1).transpose(0, 1) for name, g in found.items()}

    def all_by_definition(self) -> dict[str, Tensor]:
        """Gradients (D, n, P) of the parameters that no rule covers, by name, in all directions."""
        chunks = list(self.by_definition())
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in self.claims.fallback}


def layer_name(names: tuple[str, ...]) -> str:
    """The layer of parameters "a.b.weight", "a.b.bias": "a.b"; a single parameter keeps its name."""
    layers = {name.rpartition(".")[0] for name in names}
    return layers.pop() if len(names) > 1 and len(layers) == 1 else names[0]

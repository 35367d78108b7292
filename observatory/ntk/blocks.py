"""Blocks of examples, as many at a time as memory allows, by rule or, where there is none, by definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from observatory.looking.calls import LayerCall, RecordedForward, record_calls
from observatory.looking.model import ModelFunction
from observatory.ntk.claims import Claims
from observatory.ntk.contraction import Side, crossed, paired
from observatory.ntk.gradients import example_gradients, rows

INDEPENDENCE = 1e-3  # relative; BLAS takes other kernels for one row than for many, which differ by 1e-6
_KEPT = "_observatory_sizes"  # attribute of the twin


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
        names = [layer_name(claim.names) for claim in self.claims.claims]
        parts = _crossed(self, other) if crossed else paired(self.side, other.side)
        yield from zip(names, parts, strict=True)
        if self.claims.fallback:
            mine = self.by_definition()
            theirs = mine if other is self else other.by_definition()
            equation = "idp,jep->idje" if crossed else "idp,jdp->ij"
            for name, gradients in mine.items():
                yield name, torch.einsum(equation, gradients, theirs[name])

    def by_definition(self) -> dict[str, Tensor]:
        """Gradients (n, D, P) of the parameters that no rule covers, by name."""
        if not self.claims.fallback:
            return {}
        found = example_gradients(self.function, self.x, self.directions, self.claims.fallback)
        return {name: gradient.flatten(2) for name, gradient in found.items()}


def _crossed(left: Block, right: Block) -> Iterator[Tensor]:
    return crossed(left.side, right.side)


def layer_name(names: tuple[str, ...]) -> str:
    """The layer of parameters "a.b.weight", "a.b.bias": "a.b"; a single parameter keeps its name."""
    layers = {name.rpartition(".")[0] for name in names}
    return layers.pop() if len(names) > 1 and len(layers) == 1 else names[0]


@dataclass
class Sizes:
    """What one example takes. Kept on the twin."""

    output: torch.Size
    activations: int  # numbers in the outputs of all recorded calls
    patches: int  # numbers in the largest U
    itemsize: int
    alone: Tensor  # output of the first example without company
    independent: bool = False  # whether that was compared with its output in company

    def block(self, function: ModelFunction, *, crossed: bool, max_memory: int) -> int:
        """How many examples at a time keep activations, patches and gradients below `max_memory` bytes."""
        directions = self.output.numel() if crossed else 1
        largest = max(function.theta[name].numel() for name in function.selected)
        numbers = (
            self.activations * (3 + (directions if crossed else 0)) + self.patches + 2 * directions * largest
        )
        return int(max(1, max_memory // max(1, numbers * self.itemsize)))

    def check_output(self, output: Tensor, n: int, *, first: bool) -> None:
        """The first axis is the examples', and the first example's output the same in company as alone.

        Args:
            output: of n examples.
            n: how many there are.
            first: whether the first of them is the one that was looked at alone.

        Raises:
            ValueError: if it is not so.
        """
        if output.ndim == 0 or len(output) != n:
            raise ValueError(
                f"{n} examples gave an output of shape {tuple(output.shape)}, whose first axis is not the "
                "examples'; say which part is meant with output=, or how to call the model with forward="
            )
        if self.independent or not first:
            return
        deviation = (output[0].detach() - self.alone).abs().max()
        if deviation > INDEPENDENCE * self.alone.abs().max().clamp_min(torch.finfo(output.dtype).tiny):
            raise ValueError(
                "the first example's output depends on the other examples of the batch "
                f"(it differs by {deviation:.3g} when alone): "
                "normalisation or attention over the batch has no kernel between single examples"
            )
        self.independent = True


def sizes_of(function: ModelFunction, x: Any) -> Sizes:
    """Look at one example, once for each model and shape of inputs.

    Raises:
        ValueError: if integers go into a layer of real numbers.
    """
    known = function.twin.__dict__.setdefault(_KEPT, {})
    tensors = [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]
    key = (function.selected, function.forward, function.output, *((t.shape[1:], t.dtype) for t in tensors))
    if key not in known:
        try:
            one = record_calls(function, rows(x, 0, 1))
        except RuntimeError as error:
            integers = [t.dtype for t in tensors if not t.is_floating_point()]
            if integers and "dtype" in str(error):
                raise ValueError(
                    f"integer inputs ({integers[0]}) need an embedding as the first layer; "
                    f"otherwise make them real numbers with inputs= or x.float(): {error}"
                ) from error
            raise
        alone = one.output.detach()[0]
        activations = sum(call.shape.numel() for call in one.calls)
        patches = max((_patches(call) for call in one.calls), default=0)
        known[key] = Sizes(alone.shape, activations, patches, alone.element_size(), alone)
    sizes: Sizes = known[key]
    return sizes


def _patches(call: LayerCall) -> int:
    """Numbers in U for one example."""
    shape = call.weight_shape
    if shape is None or not call.layer.startswith("conv"):
        return 0
    return call.shape.numel() // shape[0] * shape[1:].numel() * call.arguments.get("groups", 1)

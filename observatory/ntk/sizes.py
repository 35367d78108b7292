"""What one example takes, and how many fit into memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from observatory.looking.calls import LayerCall, RecordedForward, record_calls
from observatory.looking.model import ModelFunction
from observatory.looking.probe import rows

INDEPENDENCE = 1e-3  # relative; BLAS takes other kernels for one row than for many, which differ by 1e-6
_KEPT = "_observatory_sizes"  # attribute of the twin


@dataclass
class Sizes:
    """What one example takes. Kept on the twin."""

    output: torch.Size
    activations: int  # numbers in the outputs of all recorded calls
    patches: int  # numbers in the patches of all convolutions
    whole: int  # numbers in the gradients of parameters that no single call accounts for
    itemsize: int
    independent: bool = False  # whether an output in company was found equal to that alone

    def block(self, *, directions: int, crossed: bool, max_memory: int) -> int:
        """How many examples at a time keep activations, patches and gradients below `max_memory` bytes."""
        held = directions if crossed else 1
        numbers = self.activations * (3 + held) + self.patches + 2 * held * self.whole
        return int(max(1, max_memory // max(1, numbers * self.itemsize)))

    def check(self, function: ModelFunction, x: Any, output: Tensor, n: int) -> None:
        """The first axis of the output is the examples', and no example depends on the company of others.

        Args:
            x: n examples.
            output: theirs.

        Raises:
            ValueError: if it is not so.
        """
        if output.ndim == 0 or len(output) != n:
            raise ValueError(
                f"{n} examples gave an output of shape {tuple(output.shape)}, whose first axis is not the "
                "examples'; say which part is meant with output=, or how to call the model with forward="
            )
        if self.independent or n < 2:
            return
        alone = function(rows(x, 0, 1))[0].detach()
        deviation = (output[0].detach() - alone).abs().max()
        if deviation > INDEPENDENCE * alone.abs().max().clamp_min(torch.finfo(output.dtype).tiny):
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
        known[key] = _sizes(function, _one(function, x, tensors))
    sizes: Sizes = known[key]
    return sizes


def _one(function: ModelFunction, x: Any, tensors: list[Tensor]) -> RecordedForward:
    try:
        return record_calls(function, rows(x, 0, 1))
    except RuntimeError as error:
        integers = [t.dtype for t in tensors if not t.is_floating_point()]
        if integers and "dtype" in str(error):
            raise ValueError(
                f"integer inputs ({integers[0]}) need an embedding as the first layer; "
                f"otherwise make them real numbers with inputs= or x.float(): {error}"
            ) from error
        raise


def _sizes(function: ModelFunction, one: RecordedForward) -> Sizes:
    heard = {name for call in one.calls for name in call.parameters.values()}
    return Sizes(
        output=one.output.shape[1:],
        activations=sum(call.shape.numel() for call in one.calls),
        patches=sum(_patches(call) for call in one.calls),
        whole=sum(t.numel() for k, t in function.theta.items() if k not in heard or one.uses[k] > 1),
        itemsize=one.output.element_size(),
    )


def _patches(call: LayerCall) -> int:
    """Numbers in U for one example."""
    shape = call.weight_shape
    if shape is None or not call.layer.startswith("conv"):
        return 0
    return call.shape.numel() // shape[0] * shape[1:].numel() * int(call.arguments.get("groups", 1))

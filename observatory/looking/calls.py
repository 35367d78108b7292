"""Recorded layer calls: what went into each layer, and how the output depends on what came out of it."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional

from observatory.looking.model import ModelFunction
from observatory.looking.pooling import Pooled, Poolings

# The functions through which PyTorch's layers use their weights, with the names of their arguments. Recording
# functions instead of modules also sees `F.linear(x, self.weight)` and the inside of multi-head attention.
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
LAYERS: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    "conv1d": _CONVOLUTION,
    "conv2d": _CONVOLUTION,
    "conv3d": _CONVOLUTION,
    "embedding": tuple(inspect.signature(functional.embedding).parameters),
    "layer_norm": tuple(inspect.signature(functional.layer_norm).parameters),
    "rms_norm": tuple(inspect.signature(functional.rms_norm).parameters),
    "group_norm": tuple(inspect.signature(functional.group_norm).parameters),
    "batch_norm": tuple(inspect.signature(functional.batch_norm).parameters),
}


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of one of `LAYERS` with selected parameters."""

    layer: str  # "linear", "conv2d", ...
    parameters: dict[str, str]  # argument ("weight", "bias") to the name of the model's parameter
    arguments: dict[str, Any]  # by name, tensors detached; without those parameters
    weight_shape: torch.Size | None
    shape: torch.Size  # of the output
    dtype: torch.dtype  # of the output
    edge: GradientEdge  # of the output, as it came out of the call
    pooled: Pooled | None = None  # what the output was pooled to, if that is all that was done with it

    @property
    def input(self) -> Tensor:
        tensor: Tensor = self.arguments["input"]
        return tensor


@dataclass(frozen=True, eq=False)
class RecordedForward:
    """One forward pass: the output, the calls, and how often each selected parameter entered the graph."""

    output: Tensor  # (N, ..., C), with its graph
    calls: list[LayerCall]
    uses: Counter[str]  # edges of the graph that lead into each parameter

    def gradients(
        self, direction: Tensor, calls: Sequence[LayerCall | Pooled], *, last: bool = False
    ) -> list[Tensor]:
        """∂(Σ v·f)/∂s for the output s of each call; zeros where the output does not depend on it.

        Args:
            direction: v, of the shape of the output; or several with a leading axis, which the gradients then
                have too: faster for small networks, at the price of as many times the memory.
            calls: which; or what their outputs were pooled to, for gradients by window.
            last: whether nothing more will be asked: the graph is then freed on the way, as in training.
        """
        if not calls:
            return []
        edges = [call.edge for call in calls]
        batched = direction.ndim > self.output.ndim
        with warnings.catch_warnings():
            if batched:
                warnings.filterwarnings("ignore", message="There is a performance drop")
            found = torch.autograd.grad(
                self.output,
                edges,
                direction,
                retain_graph=not last,
                allow_unused=True,
                is_grads_batched=batched,
            )
        leading = direction.shape[:1] if batched else ()
        return [
            self.output.new_zeros(*leading, *call.shape) if gradient is None else gradient
            for call, gradient in zip(calls, found, strict=True)
        ]


def record_calls(function: ModelFunction, x: Any) -> RecordedForward:
    """Run the model once on `x` and record every call of a layer function with a selected parameter.

    Gradients refer to what a layer returned even if it is overwritten afterwards (`ReLU(inplace=True)`): the
    edge of the graph is taken at the time of the call. Inputs that are overwritten later are copied, at the
    price of a second pass.

    Raises:
        RuntimeError: in inference mode, where there are no derivatives.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "there are no derivatives within torch.inference_mode(): call this outside of it, or within "
            "torch.no_grad() instead"
        )
    recorder = _Recorder(function, copy=False)
    output = recorder.run(x)
    if any(tensor._version != version for tensor, version in recorder.versions):
        recorder = _Recorder(function, copy=True)
        output = recorder.run(x)
    return recorder.record(output)


class _Recorder:
    def __init__(self, function: ModelFunction, *, copy: bool) -> None:
        self.function, self.copy = function, copy
        self.theta = {name: tensor.detach().requires_grad_() for name, tensor in function.theta.items()}
        self.names = {id(tensor): name for name, tensor in self.theta.items()}
        self.calls: list[LayerCall] = []
        self.versions: list[tuple[Tensor, int]] = []
        self.thread = threading.get_ident()
        self.poolings = Poolings(self.thread)

    def run(self, x: Any) -> Tensor:
        with self._listening(), torch.enable_grad():
            return self.function(x, self.theta)

    def record(self, output: Tensor) -> RecordedForward:
        edges = _edges(output)
        pooled = {
            node: replace(pooled, ends=node.next_functions[0][0] is None)
            for node, pooled in self.poolings.found
            if pooled.edge.node in edges and edges[node] == 1
        }
        calls = [replace(call, pooled=pooled.get(call.edge.node)) for call in self.calls]
        uses: Counter[str] = Counter()
        for node, count in edges.items():
            if (variable := getattr(node, "variable", None)) is not None:
                uses[self.names.get(id(variable), "")] += count
        return RecordedForward(output, calls, uses)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        originals = {name: getattr(functional, name) for name in (*LAYERS, "relu", "max_pool2d")}
        heard = {layer: self._heard(layer, originals[layer]) for layer in LAYERS}
        heard["relu"] = self.poolings.relu(originals["relu"])
        heard["max_pool2d"] = self.poolings.max_pool2d(originals["max_pool2d"])
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it fuses a whole transformer layer into one call
        try:
            for name, function in heard.items():
                setattr(functional, name, function)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for name, original in originals.items():
                setattr(functional, name, original)
            self.poolings.forget()

    def _heard(self, layer: str, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The layer function, which also takes notes; calls of other threads pass through."""

        @wraps(original)
        def call(*args: Any, **kwargs: Any) -> Tensor:
            output = original(*args, **kwargs)
            if threading.get_ident() == self.thread:
                self._note(layer, dict(zip(LAYERS[layer], args, strict=False)) | kwargs, output)
            return output

        return call

    def _note(self, layer: str, arguments: dict[str, Any], output: Tensor) -> None:
        mine = {key: self.names[id(value)] for key, value in arguments.items() if id(value) in self.names}
        if not mine:
            return
        weight = arguments.get("weight")
        kept = {key: self._kept(value) for key, value in arguments.items() if key not in mine}
        shape = None if weight is None else weight.shape
        edge = get_gradient_edge(output)
        self.calls.append(LayerCall(layer, mine, kept, shape, output.shape, output.dtype, edge))

    def _kept(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().clone() if self.copy else value.detach()
        self.versions.append((value, value._version))
        return value


def _edges(output: Tensor) -> Counter[Node]:
    """How many edges of the graph lead into each of its nodes; what was heard may not be all."""
    waiting: list[Node] = [] if output.grad_fn is None else [output.grad_fn]
    edges: Counter[Node] = Counter(dict.fromkeys(waiting, 0))
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is None:
                continue
            if node not in edges:
                waiting.append(node)
            edges[node] += 1
    return edges

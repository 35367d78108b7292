"""Which weight layers a network has, which of them feed which, and their live weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from observatory.dimension.paths import INPUT, PathWeights, path_weights
from observatory.dimension.strengths import Power, weight_strengths
from observatory.looking.model import ModelFunction
from observatory.looking.probe import rows

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRACED = 2  # examples of the pass that finds the structure
# Where two activations are multiplied, as in gates and attention.
PRODUCTS = ("MulBackward", "BmmBackward", "MmBackward", "ScaledDotProduct")


@dataclass(frozen=True, eq=False)
class WeightLayer:
    """One call of a linear layer or a convolution."""

    name: str  # of the module; "#2" is appended for its second call
    weight: Tensor  # (n_out, n_in/groups, ...), as it is now
    bias: Tensor | None
    groups: int
    sources: tuple[int, ...]  # layers that feed it without another one between, counted from 1; 0: the input
    summed: bool = True  # whether what it reads is a sum over its sources, and no product of them
    scale: Tensor | None = None  # γ/√(var + ε) of a batch norm directly behind it, (n_out,)

    @property
    def nodes(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class Structure:
    """The weight layers in the order of their calls."""

    layers: list[WeightLayer]

    def follower(self, number: int) -> int | None:
        """The first layer that layer `number` feeds, counted from 1; None behind the last."""
        return next((k for k, layer in enumerate(self.layers, 1) if number in layer.sources), None)

    @property
    def depths(self) -> list[int]:
        """Weight layers on the longest way from the input to each layer, with it."""
        found = [0]
        for layer in self.layers:
            found.append(1 + max(found[k] for k in layer.sources))
        return found[1:]

    @property
    def hidden(self) -> list[int]:
        """Numbers of the layers that others follow; of several that join before the next one, the deepest."""
        depths = self.depths
        deepest: dict[int, int] = {}  # by the layer that follows
        for number in range(1, len(self.layers) + 1):
            follower = self.follower(number)
            if follower is None:
                continue
            rival = deepest.get(follower)
            if rival is None or depths[number - 1] > depths[rival - 1]:
                deepest[follower] = number
        return sorted(deepest.values())

    def strengths(self, *, q: Power = 2, fold_bn: bool = True) -> list[Tensor]:
        """A = |W|^q of every layer; the positions that a linear layer reads of one channel are added up."""
        found = []
        for layer in self.layers:
            scale = layer.scale if fold_bn else None
            a = weight_strengths(layer.weight, q=q, groups=layer.groups, scale=scale)
            before = {self.layers[k - 1].nodes for k in layer.sources if k > INPUT}
            nodes = before.pop() if len(before) == 1 else a.shape[1]
            found.append(a.unflatten(1, (nodes, -1)).sum(-1) if a.shape[1] % nodes == 0 else a)
        return found

    def paths(self, strengths: list[Tensor], **importance: Tensor | None) -> PathWeights:
        """Path weights; where layers join, their outputs are added.

        Raises:
            ValueError: if activations are multiplied, as in attention, or the layers do not fit together.
        """
        if joined := [layer.name for layer in self.layers if not layer.summed]:
            raise ValueError(f"{joined[0]} reads a product of activations, through which no path leads")
        return path_weights(strengths, sources=[layer.sources for layer in self.layers], **importance)


def find_structure(function: ModelFunction, inputs: Any) -> Structure:
    """Run two examples through the network with every layer's output cut off from what came before.

    The graph of a layer's input then ends at the layers that feed it.

    Raises:
        ValueError: if the network calls no linear layer and no convolution.
    """
    tracer = _Tracer()
    few = rows(inputs, 0, TRACED)
    with torch.enable_grad(), hooked(function.twin, tracer.before, tracer.after):
        function(tree_map(tracer.cut_input, few))
    if not tracer.layers:
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        raise ValueError(
            f"{type(function.twin).__name__} calls no module with weights that are known: {kinds}"
        )
    return Structure(tracer.layers)


class _Tracer:
    def __init__(self) -> None:
        self.layers: list[WeightLayer] = []
        self.leaves: dict[int, int] = {}  # id of a cut output to the number of its layer
        self.outputs: dict[int, int] = {}  # id of what was passed on to the number of its layer
        self.kept: list[Tensor] = []  # ids are unique among the living

    def cut_input(self, leaf: Any) -> Any:
        return self._cut(leaf, INPUT) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    def _cut(self, tensor: Tensor, number: int) -> Tensor:
        leaf = tensor.detach().clone().requires_grad_()
        passed = leaf.clone()  # a leaf must not be overwritten, as ReLU(inplace=True) would
        self.leaves[id(leaf)] = self.outputs[id(passed)] = number
        self.kept += [leaf, passed]
        return passed

    def before(self, name: str, module: nn.Module, read: Any) -> None:
        if isinstance(module, _BatchNorm):
            number = self.outputs.get(id(read), INPUT)
            if number > INPUT:
                self.layers[number - 1] = replace(self.layers[number - 1], scale=_scale(module))
        elif isinstance(module, KINDS):
            calls = sum(layer.name.partition("#")[0] == name for layer in self.layers)
            sources, summed = self._sources(read)
            self.layers.append(
                WeightLayer(
                    name=f"{name}#{calls + 1}" if calls else name,
                    weight=module.weight.detach(),
                    bias=None if module.bias is None else module.bias.detach(),
                    groups=getattr(module, "groups", 1),
                    sources=sources or (INPUT,),
                    summed=summed,
                )
            )

    def after(self, name: str, module: nn.Module, output: Any) -> Any:
        return self._cut(output, len(self.layers)) if isinstance(module, KINDS) else None

    def _sources(self, tensor: Tensor) -> tuple[tuple[int, ...], bool]:
        """Layers at which the graph of a tensor ends, and whether nothing on the way multiplies two."""
        waiting = [tensor.grad_fn]
        seen, found, summed = set(waiting), set(), True
        while waiting:
            visited = waiting.pop()
            following = [node for node, _ in getattr(visited, "next_functions", ()) if node is not None]
            summed &= len(following) < 2 or not type(visited).__name__.startswith(PRODUCTS)
            for node in following:
                if hasattr(node, "variable"):
                    found.add(self.leaves.get(id(node.variable), INPUT))
                elif node not in seen:
                    seen.add(node)
                    waiting.append(node)
        return tuple(sorted(found)), summed


def _scale(norm: _BatchNorm) -> Tensor | None:
    if norm.running_var is None:
        return None
    gamma = 1.0 if norm.weight is None else norm.weight.detach()
    return gamma / (norm.running_var + norm.eps).sqrt()


@contextmanager
def hooked(
    twin: nn.Module, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Call `before(name, module, first argument)` and `after(name, module, output)` around every call."""
    handles: list[RemovableHandle] = []
    try:
        for name, module in twin.named_modules():
            if before is not None:
                handles.append(module.register_forward_pre_hook(_reading(before, name), with_kwargs=True))
            if after is not None:
                handles.append(module.register_forward_hook(_returning(after, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reading(hook: Callable[..., Any], name: str) -> Callable[..., Any]:
    return lambda module, args, kwargs: hook(name, module, next(iter((*args, *kwargs.values())), None))


def _returning(hook: Callable[..., Any], name: str) -> Callable[..., Any]:
    return lambda module, args, output: hook(name, module, output)

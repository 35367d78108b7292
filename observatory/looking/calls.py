"""Recorded leaf calls: what went into each layer, and how the output depends on what came out of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from observatory.looking.model import ModelFunction


@dataclass(frozen=True, eq=False)
class LeafCall:
    """One call of one module that owns selected parameters."""

    name: str  # of the module, as in `named_modules()`
    module: nn.Module  # the twin's; its parameters are on the meta device
    parameters: dict[str, str]  # own name ("weight") to the name of the model's parameter
    inputs: tuple[Any, ...]  # positional, detached
    keywords: dict[str, Any]
    buffers: dict[str, Tensor]  # of the module, at the time of the call
    shape: torch.Size  # of the output
    edge: GradientEdge  # of the output, as it came out of the module


@dataclass(frozen=True, eq=False)
class RecordedForward:
    """One forward pass: the output, the calls, and how often each selected parameter entered the graph."""

    output: Tensor  # (N, ..., C), with its graph
    calls: list[LeafCall]
    theta: dict[str, Tensor]  # the selected parameters as leaves of the graph
    uses: Counter[str]  # edges of the graph that lead into each parameter

    def gradients(self, direction: Tensor, calls: list[LeafCall]) -> list[Tensor]:
        """∂(Σ v·f)/∂s for the output s of each call; zeros where the output does not depend on it.

        Args:
            direction: v, of the shape of the output.
        """
        edges = [call.edge for call in calls]
        found = torch.autograd.grad(self.output, edges, direction, retain_graph=True, allow_unused=True)  # type: ignore[call-overload]
        return [
            self.output.new_zeros(call.shape) if gradient is None else gradient
            for call, gradient in zip(calls, found, strict=True)
        ]


def record_calls(function: ModelFunction, x: Any) -> RecordedForward:
    """Run the model once on `x` and record the calls of every module that owns a selected parameter.

    Gradients refer to what a module returned even if it is overwritten afterwards (`ReLU(inplace=True)`): the
    edge of the graph is taken at the time of the call. Inputs that are overwritten later are copied, at the
    price of a second pass.
    """
    calls, versions, record = _run(function, x, copy=False)
    if any(tensor._version != version for tensor, version in versions):
        calls, _, record = _run(function, x, copy=True)
    output, theta = record
    return RecordedForward(output, calls, theta, _uses(output, theta))


def _run(
    function: ModelFunction, x: Any, *, copy: bool
) -> tuple[list[LeafCall], list[tuple[Tensor, int]], tuple[Tensor, dict[str, Tensor]]]:
    theta = {name: tensor.detach().requires_grad_() for name, tensor in function.theta.items()}
    names = {id(p): name for name, p in function.twin.named_parameters()}
    calls: list[LeafCall] = []
    versions: list[tuple[Tensor, int]] = []

    def keep(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().clone() if copy else value.detach()
        versions.append((value, value._version))
        return value

    def hook(name: str, owned: dict[str, str], module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            inputs = tuple(keep(value) for value in args)
            keywords = {key: keep(value) for key, value in kwargs.items()}
            buffers = {key: value for key, value in module._buffers.items() if value is not None}
            edge = get_gradient_edge(output)
            calls.append(LeafCall(name, module, owned, inputs, keywords, buffers, output.shape, edge))

    handles = []
    for name, module in function.twin.named_modules():
        owned = {own: names[id(p)] for own, p in module._parameters.items() if p is not None}
        owned = {own: full for own, full in owned.items() if full in theta}
        if owned:

            def bound(
                module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name, owned: dict[str, str] = owned
            ) -> None:
                hook(name, owned, module, args, kwargs, output)

            handles.append(module.register_forward_hook(bound, with_kwargs=True))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path calls no submodule
    try:
        with torch.enable_grad():
            output = function(x, theta)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    return calls, versions, (output, theta)


def _uses(output: Tensor, theta: dict[str, Tensor]) -> Counter[str]:
    """How many edges of the graph lead into each parameter: the calls that hooks see may not be all."""
    names = {id(tensor): name for name, tensor in theta.items()}
    uses: Counter[str] = Counter()
    waiting: list[Node] = [] if output.grad_fn is None else [output.grad_fn]
    seen = set(waiting)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is None:
                continue
            variable = getattr(node, "variable", None)
            if variable is not None:
                uses[names.get(id(variable), "")] += 1
            elif node not in seen:
                seen.add(node)
                waiting.append(node)
    return uses

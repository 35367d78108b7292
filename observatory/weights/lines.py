"""Walking along straight lines in weight space without forming the weights at every point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_LINEAR_IN_WEIGHTS = {functional.linear, functional.conv1d, functional.conv2d, functional.conv3d}


class StraightLine(TorchFunctionMode):
    """While active, every use of a weight θ₀ means θ₀ + s p.

    A layer that is linear in its weights is evaluated as layer(x; θ₀) + s layer(x; p): under `vmap` over
    s, the two products are shared by all points of a line, so that a line search costs little more than
    one point. Any other operation gets the sum itself.

    Args:
        start: θ₀ by name; the very tensors that the operations will be called with.
        direction: p by name, of the same shapes.
        s: distance, a scalar.
    """

    def __init__(self, start: Mapping[str, Tensor], direction: Mapping[str, Tensor], s: Tensor) -> None:
        super().__init__()
        self._along = {id(tensor): (tensor, direction[name]) for name, tensor in start.items()}
        self._s = s

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LINEAR_IN_WEIGHTS and id(args[0]) not in self._along:
            weight, bias = self._weight_and_bias(args, kwargs)
            if id(weight) in self._along or id(bias) in self._along:
                return self._layer(func, args, kwargs, weight, bias)
        return func(*self._moved(args), **self._moved(kwargs))

    def _moved(self, arguments: Any) -> Any:
        """The arguments with θ₀ + s p in place of θ₀."""

        def move(leaf: Any) -> Any:
            found = self._along.get(id(leaf))
            return leaf if found is None else found[0] + self._s * found[1]

        return tree_map(move, arguments)

    @staticmethod
    def _weight_and_bias(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        return weight, args[2] if len(args) > 2 else kwargs.get("bias")

    def _layer(
        self,
        func: Callable[..., Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        weight: Any,
        bias: Any,
    ) -> Tensor:
        x, options = args[0], args[3:]
        named = {key: value for key, value in kwargs.items() if key not in ("weight", "bias")}
        here = func(x, weight, bias, *options, **named)
        p_bias = self._along[id(bias)][1] if id(bias) in self._along else None
        if id(weight) in self._along:
            slope = func(x, self._along[id(weight)][1], p_bias, *options, **named)
            return torch.addcmul(here, self._s, slope)
        shape = (-1,) if func is functional.linear else (-1, *[1] * (weight.ndim - 2))
        return here + self._s * p_bias.reshape(shape)  # type: ignore[union-attr]

"""Largest values of windows, rectified or not, as one step with a cheap derivative.

Of max(relu(x)) over a window only the largest x matters: relu(max x) has the same value and the same
derivative, and rectifies only as many numbers as there are windows. The gradient with respect to x vanishes
but at one place of each window, so it can be kept by window.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

NARROW = 4  # channels; more of them are pooled faster on a CPU if they are last in memory


class MaxPool:
    """One call of `max_pool2d` on x (n, channels, height, width).

    Args:
        x: what is pooled; only its shape is remembered, so it may be overwritten.
        geometry: kernel size, stride, padding, dilation, ceil_mode, as of `functional.max_pool2d`.

    Attributes:
        places: of the largest in each window in height · width, row after row, (n, channels, *windows).
    """

    def __init__(self, x: Tensor, geometry: tuple[Any, ...]) -> None:
        self._like, self._geometry = x.detach(), geometry
        slow = x.device.type == "cpu" and x.shape[1] >= NARROW and x.is_contiguous()
        images = self._like.contiguous(memory_format=torch.channels_last) if slow else self._like
        found = torch.ops.aten.max_pool2d_with_indices(images, *geometry)
        self._largest, self.places = [each.contiguous() for each in found] if slow else found

    def take_largest(self) -> Tensor:
        """Of each window, (n, channels, *windows), without a graph; once, since they may be overwritten."""
        largest = self._largest
        del self._largest
        return largest

    @property
    def step(self) -> int:
        """From window to window, in places of the image: the product of the strides."""
        kernel_size, stride = self._geometry[:2]
        return math.prod(_pair(stride or kernel_size))

    def spread(self, gradient: Tensor, examples: slice = slice(None)) -> Tensor:
        """The gradient with respect to x from that with respect to the windows.

        Args:
            gradient: (n', channels, *windows), of some examples.
            examples: which.

        Returns:
            (n', channels, height, width).
        """
        spread: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, self._like[examples], *self._geometry, self.places[examples]
        )
        return spread


class _Pooling(torch.autograd.Function):
    """`_Pooling.apply(x, pool)`: the windows of a `MaxPool` of x, with their graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: MaxPool) -> Tensor:
        ctx.pool = pool
        return pool.take_largest()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.pool.spread(gradient), None


@dataclass(frozen=True, eq=False)
class Pooled:
    """What became of a tensor of which the largest values in windows were asked for."""

    pool: MaxPool
    edge: GradientEdge  # of these values, before they are rectified
    shape: torch.Size  # of these values
    ends: bool = False  # whether the backward pass ends here, so that nothing needs the gradient in full


class Poolings:
    """Hears calls of `functional.relu` and `functional.max_pool2d` and makes one step of the two.

    Args:
        thread: whose calls are heard; those of others pass through.
    """

    def __init__(self, thread: int) -> None:
        self.found: list[tuple[Node, Pooled]] = []  # with where what was pooled comes from
        self._thread = thread
        self._latest: tuple[Tensor, int, Tensor, int] | None = None  # relu(x), x, and their versions

    def relu(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(original)
        def relu(input: Tensor, inplace: bool = False) -> Tensor:
            output = original(input, inplace)
            if not inplace and threading.get_ident() == self._thread:
                self._latest = (output, output._version, input, input._version)
            return output

        return relu

    def max_pool2d(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def max_pool2d(
            input: Tensor,
            kernel_size: Any,
            stride: Any = None,
            padding: Any = 0,
            dilation: Any = 1,
            ceil_mode: bool = False,
            return_indices: bool = False,
        ) -> Any:
            if return_indices or threading.get_ident() != self._thread or not _is_plain(input):
                return original(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
            before = self._before(input) if _never_empty(padding, dilation) else None
            x = input if before is None else before
            geometry = (kernel_size, [] if stride is None else stride, padding, dilation, ceil_mode)
            pool = MaxPool(x, geometry)
            largest: Tensor = _Pooling.apply(x, pool)
            if x.grad_fn is not None:
                self.found.append((x.grad_fn, Pooled(pool, get_gradient_edge(largest), largest.shape)))
            # not relu, which is in need of its result: that is the caller's, who may overwrite it
            return largest if before is None else torch.threshold(largest, 0, 0)

        return max_pool2d

    def forget(self) -> None:
        """Let go of the activation that was heard last."""
        self._latest = None

    def _before(self, pooled: Tensor) -> Tensor | None:
        """x, if what is pooled is relu(x), and neither has been overwritten since."""
        if self._latest is None:
            return None
        output, version, x, x_version = self._latest
        same = output is pooled and output._version == version and x._version == x_version
        return x if same and _is_plain(x) else None


def _never_empty(padding: Any, dilation: Any) -> bool:
    """Whether every window has a place in the image: max relu of no numbers is -inf, relu max of them 0."""
    return max(_pair(padding)) == 0 or max(_pair(dilation)) == 1


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _is_plain(x: Tensor) -> bool:
    """Images with a graph, outside the transforms of `torch.func`."""
    inside = torch._C._functorch.peek_interpreter_stack() is not None
    return type(x) is Tensor and x.ndim == 4 and x.requires_grad and not inside

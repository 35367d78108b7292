"""Convolutions of one to three dimensions as linear maps of patches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import product

from torch import Tensor
from torch.nn import functional

from observatory.looking.calls import LayerCall
from observatory.ntk.factors import Layout, SiteFactors


class ConvolutionFactors(SiteFactors):
    """Patches have their channels last: windows of neighbouring pixels are then contiguous in memory."""

    def __init__(self, call: LayerCall, own: tuple[str, ...], n: int, layout: Layout = "outer") -> None:
        super().__init__(call, own, n, layout)
        assert call.weight_shape is not None
        self.out_channels, self.channels, *self.kernel = call.weight_shape
        self.groups = call.arguments.get("groups", 1)
        self.outputs = self.out_channels // self.groups
        self.inputs = self.channels * math.prod(self.kernel)
        self.stride, self.dilation = (
            self._each(call.arguments.get(key, 1)) for key in ("stride", "dilation")
        )
        self.sites = call.shape.numel() // (n * self.out_channels)

    def _patches(self, at: slice) -> Tensor:
        rank = len(self.kernel)
        x, (n, r) = self._padded(at)
        for d in range(rank):
            x = self._windows(x, d)
        x = x.unflatten(1 + rank, (self.groups, self.channels))  # (n·r, *sites, g, channels, *kernel)
        x = x.unflatten(0, (n, r))
        order = (2 + rank, *range(1, 2 + rank), *range(4 + rank, 4 + 2 * rank), 3 + rank)
        return x.permute(0, *order).reshape(n, self.groups, self.sites, self.inputs)

    def parts(self) -> Iterator[Tensor]:
        """A part for each row of the kernel: windows along the last axis are copied, rows are views."""
        if self.groups > 1:
            yield self.unbiased
            return
        windows = self._rows
        for offsets in product(*(range(k) for k in self.kernel[:-1])):
            at = [
                slice(d * k, d * k + s * (count - 1) + 1, s)
                for k, d, s, count in zip(offsets, self.dilation, self.stride, self._sites[:-1], strict=False)
            ]
            part = windows[(slice(None), slice(None), *at)]
            yield part.reshape(self.n, 1, self.sites, windows.shape[-1])

    @cached_property
    def _rows(self) -> Tensor:
        """(n, r, *pixels but the last, sites along the last, last kernel axis · channels)"""
        last = len(self.kernel) - 1
        x, (n, r) = self._padded(slice(None))
        x = self._windows(x, last).movedim(-1, -2)  # (n·r, *pixels, sites, kernel, channels)
        return x.flatten(-2).contiguous().unflatten(0, (n, r))  # one copy, of which all rows are views

    @cached_property
    def _sites(self) -> tuple[int, ...]:
        """Along each axis of the output."""
        return tuple(self.call.shape[2:])

    def _padded(self, at: slice) -> tuple[Tensor, tuple[int, int]]:
        """The images of some examples, (n·r, *pixels, channels), and (n, r)."""
        x = self.by_example(self.call.input[None])[0, at]  # (n, r, channels, *pixels)
        n, r = x.shape[:2]
        x, padding = x.flatten(0, 1), self._padding(self.dilation)
        if any(padding):
            x = functional.pad(x, padding)
        return x.movedim(1, -1).contiguous(), (n, r)

    def _windows(self, x: Tensor, axis: int) -> Tensor:
        """Windows along one axis of the pixels, behind all other axes."""
        stride, dilation = self.stride[axis], self.dilation[axis]
        return x.unfold(1 + axis, dilation * (self.kernel[axis] - 1) + 1, stride)[..., ::dilation]

    @property
    def copied(self) -> int:
        return self.groups * self.sites * self.inputs

    def backward(self, gradient: Tensor) -> Tensor:
        b = self.by_example(gradient.flatten(3))  # (D, N, r, channels, sites of one)
        b = b.unflatten(3, (self.groups, self.outputs)).permute(0, 1, 3, 2, 5, 4)
        return b.reshape(len(b), self.n, self.groups, self.sites, self.outputs)

    def _as_weight(self, gradients: Tensor) -> Tensor:
        kernels = gradients.reshape(*gradients.shape[:2], self.out_channels, *self.kernel, self.channels)
        return kernels.movedim(-1, 3)

    def _each(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        value = (value,) if isinstance(value, int) else tuple(value)
        return value * len(self.kernel) if len(value) == 1 else value

    def _padding(self, dilation: tuple[int, ...]) -> list[int]:
        """For `functional.pad`: last axis first, left and right."""
        padding = self.call.arguments.get("padding", 0)
        if padding == "valid":
            return []
        if padding == "same":  # the odd one goes to the right
            total = [d * (k - 1) for d, k in zip(dilation, self.kernel, strict=True)]
            return [side for t in reversed(total) for side in (t // 2, t - t // 2)]
        return [size for size in reversed(self._each(padding)) for _ in range(2)]

"""Convolutions of one to three dimensions as linear maps of patches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from observatory.looking.calls import LayerCall
from observatory.ntk.factors import FORMED_NUMBERS, Layout, SiteFactors

WEIGHT_GRADIENTS = (conv1d_weight, conv2d_weight, conv3d_weight)  # by number of axes


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
        return self._windowed(at, self.inputs)

    def _biased(self, at: slice) -> Tensor:
        if not self.weighted or self.columns == self.inputs:
            return super()._biased(at)
        patches = self._windowed(at, self.columns)
        rest = patches.new_zeros(self.columns - self.inputs)
        rest[0] = self.biased  # one for the bias, if there is one; then zeros
        patches[..., self.inputs :] = rest
        return patches

    def _windowed(self, at: slice, columns: int) -> Tensor:
        """(n, groups, sites, columns), of which the first ones are the inputs and others are left open."""
        images = self._images[at]
        frame = self._frame(len(images))
        self._interior(frame).copy_(images)
        windows = self._windows(frame)
        patches = windows.new_empty(len(images), self.groups, self.sites, columns)
        inputs = patches[..., : self.inputs].unflatten(3, (*self.kernel, self.channels))
        inputs.unflatten(2, windows.shape[2 : -1 - len(self.kernel)]).copy_(windows)
        return patches

    def blocks(self, step: int) -> Iterator[Tensor]:
        frame = self._frame(min(step, self.n), channels_last=not self._runs_along_pixels)
        interior, windows = self._interior(frame), self._windows(frame)
        if self._runs_along_pixels:
            rank = len(self.kernel)
            windows = windows.permute(0, 1, *range(3 + rank, windows.ndim), *range(2, 3 + rank))
        copied = windows.new_empty(windows.shape)
        if self._runs_along_pixels:
            patches = copied.view(len(frame), self.groups, self.inputs, self.sites).mT
        else:
            patches = copied.view(len(frame), self.groups, self.sites, self.inputs)
        for images in self._images.split(step):  # in memory that is used again
            n = len(images)
            interior[:n].copy_(images)
            copied[:n].copy_(windows[:n])
            yield patches[:n]

    @property
    def _runs_along_pixels(self) -> bool:
        """Whether windows have longer runs in memory along a row of sites than along kernel and channels."""
        return self.call.shape[-1] > self.kernel[-1] * self.channels

    def _weight_norms(self, rows: Sequence[Tensor]) -> Tensor:
        if not self._as_grouped_convolution:
            return super()._weight_norms(rows)
        images, sides = self._images, self._padding(self.dilation) or [0] * (2 * len(self.kernel))
        if sides[::2] != sides[1::2]:
            images, sides = functional.pad(images, sides), [0] * len(sides)
        form = WEIGHT_GRADIENTS[len(self.kernel) - 1]
        step = max(1, FORMED_NUMBERS // self.numbers)
        norms = rows[0].new_empty(len(rows), self.n, self.groups)
        for one, found in zip(rows, norms, strict=True):
            b = one.view(self.n, self.out_channels, images.shape[1], *self.call.shape[2:]).movedim(2, 1)
            for x, b_t, target in zip(images.split(step), b.split(step), found.split(step), strict=True):
                shape = torch.Size((len(x) * self.out_channels, self.channels, *self.kernel))
                x, b_t = (t.transpose(0, 1).flatten(1, 2) for t in (x, b_t))  # (r, n·channels, *pixels)
                groups = target.numel()
                formed = form(x, shape, b_t, self.stride, tuple(sides[::-2]), self.dilation, groups)
                torch.linalg.vector_norm(formed.view(groups, -1), dim=1, out=target.view(-1))
        return norms.flatten(1)

    @property
    def _as_grouped_convolution(self) -> bool:
        """Whether to form the weight's gradients as that of one convolution in which examples are groups.

        It makes no patches, so it is faster where sites outnumber outputs; elsewhere products of matrices
        are, and for a few channels, and where there is no fast convolution.
        """
        x = self.call.input
        fast = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        return fast and (self.channels == 1 or self.channels % 16 == 0) and self.sites > self.outputs

    @property
    def _images(self) -> Tensor:
        """(n, r, channels, *pixels)"""
        return self.by_example(self.call.input[None])[0]

    def _frame(self, n: int, *, channels_last: bool = True) -> Tensor:
        """Zeros for n padded images, (n, r, *pixels, channels), in this or in the images' order in memory."""
        r, channels, *pixels = self._images.shape[1:]
        padded = [size + left + right for size, (left, right) in zip(pixels, self._sides(), strict=True)]
        if channels_last:
            return self.call.input.new_zeros(n, r, *padded, channels)
        return self.call.input.new_zeros(n, r, channels, *padded).movedim(2, -1)

    def _interior(self, frame: Tensor) -> Tensor:
        """Where the images go in a frame, as `_images` are."""
        pixels = self._images.shape[3:]
        inside = [slice(left, left + size) for size, (left, _) in zip(pixels, self._sides(), strict=True)]
        return frame[(slice(None), slice(None), *inside)].movedim(-1, 2)

    def _sides(self) -> list[tuple[int, int]]:
        """Padding left and right of each axis."""
        padding = self._padding(self.dilation) or [0] * (2 * len(self.kernel))
        return list(zip(padding[::2], padding[1::2], strict=True))[::-1]

    def _windows(self, frame: Tensor) -> Tensor:
        """What each site sees of padded images, a view (n, groups, r, *sites, *kernel, group's channels)."""
        rank = len(self.kernel)
        for axis, (size, stride, dilation) in enumerate(
            zip(self.kernel, self.stride, self.dilation, strict=True)
        ):
            frame = frame.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        frame = frame.unflatten(2 + rank, (self.groups, self.channels))
        order = (0, 2 + rank, 1, *range(2, 2 + rank), *range(4 + rank, 4 + 2 * rank), 3 + rank)
        return frame.permute(order)

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

"""What each kind of layer contributes to the kernel, from one recorded call.

The gradient of a layer's weight for example i in output direction v factorises over sites s (positions of a
convolution, tokens of a sequence, one for a vector): G_i = Σ_s B_i[s] U_i[s]ᵀ, with U the inputs (patches)
and B = ∂(v·f_i)/∂(output). A bias is a further input that is always one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from observatory.looking.calls import LayerCall

KEPT_NUMBERS = 2**23  # patches of a call are kept between directions up to this size

Layout = Literal["outer", "inner", "second"]  # of examples: (N·r, ...), (r·N, ...), (r, N, ...)


class Factors(ABC):
    """One recorded call, its tensors arranged by example.

    Args:
        call: the call.
        own: those of its parameters that belong to this contribution, "weight" or "bias".
        n: number of examples.
        layout: where the call's tensors have their examples.
    """

    def __init__(self, call: LayerCall, own: tuple[str, ...], n: int, layout: Layout = "outer") -> None:
        self.call, self.own, self.n, self.layout = call, own, n, layout

    @abstractmethod
    def backward(self, gradient: Tensor) -> Tensor:
        """B by example, from the gradient with respect to the output of the call."""

    @abstractmethod
    def parameter_gradients(self, b: Tensor) -> dict[str, Tensor]:
        """Per-example gradients (N, *parameter) of the parameters by own name."""

    def by_example(self, tensor: Tensor) -> Tensor:
        """(N, rows of one example, ...) of a tensor of the call."""
        return by_example(tensor, self.n, self.layout)


def by_example(tensor: Tensor, n: int, layout: Layout) -> Tensor:
    """(n, rows of one example, ...)."""
    if layout == "outer":
        return tensor.reshape(n, -1, *tensor.shape[1:])
    if layout == "inner":
        tensor = tensor.reshape(-1, n, *tensor.shape[1:])
    return tensor.transpose(0, 1)


class SiteFactors(Factors):
    """Contributions that factorise over sites: linear maps, convolutions, embeddings."""

    groups: int = 1  # of channels that do not mix
    sites: int  # per example
    inputs: int  # per group and site
    outputs: int  # per group and site
    one_hot = False  # whether U is one-hot, and never formed

    _kept: Tensor | None = None

    @abstractmethod
    def _patches(self) -> Tensor:
        """U from the call's input."""

    @property
    def patches(self) -> Tensor:
        """U, (N, groups, sites, inputs), with a last column of ones for the bias; kept if it is small."""
        if self._kept is not None:
            return self._kept
        patches = self._patches()
        if patches.numel() <= KEPT_NUMBERS:
            self._kept = patches
        return patches

    def overlaps(self, other: SiteFactors) -> Tensor:
        """U_i[s] · U_j[t], (groups, N·sites, M·sites)."""
        left = self.patches.transpose(0, 1).flatten(1, 2)
        right = left if other is self else other.patches.transpose(0, 1).flatten(1, 2)
        return left @ right.mT

    def overlaps_within(self) -> Tensor:
        """U_i[s] · U_i[t], (N, groups, sites, sites)."""
        return self.patches @ self.patches.mT

    @property
    def forming(self) -> int:
        """Multiplications for the gradient of one example."""
        return self.groups * self.sites * self.outputs * (1 if self.one_hot else self.inputs)

    @property
    def overlapping(self) -> int:
        """Multiplications for the overlaps of one site with another."""
        return self.groups * (1 if self.one_hot else self.inputs)

    @property
    def numbers(self) -> int:
        """In the gradient of one example."""
        return self.groups * self.outputs * self.inputs

    def gradients(self, b: Tensor) -> Tensor:
        """All per-example gradients in one row each, (..., N, P of this contribution), from B (..., N, g, s,
        o).
        """
        return (b.mT @ self.patches).flatten(-3)

    def parameter_gradients(self, b: Tensor) -> dict[str, Tensor]:
        joint = b.mT @ self.patches  # (N, groups, outputs, inputs)
        found = {}
        if "bias" in self.own:
            found["bias"] = joint[..., -1].flatten(1)
            joint = joint[..., :-1]
        if "weight" in self.own:
            found["weight"] = joint.reshape(len(b), *(self.call.weight_shape or ()))
        return found

    def _with_ones(self, patches: Tensor) -> Tensor:
        if "weight" not in self.own:
            return torch.ones_like(patches[..., :1])
        if "bias" not in self.own:
            return patches
        return torch.cat([patches, torch.ones_like(patches[..., :1])], -1)


class LinearFactors(SiteFactors):
    def __init__(self, call: LayerCall, own: tuple[str, ...], n: int, layout: Layout = "outer") -> None:
        super().__init__(call, own, n, layout)
        self.outputs = call.shape[-1]
        self.inputs = ("weight" in own) * call.input.shape[-1] + ("bias" in own)
        self.sites = call.shape.numel() // (n * self.outputs)

    def _patches(self) -> Tensor:
        return self._with_ones(self.by_example(self.call.input).reshape(self.n, 1, self.sites, -1))

    def backward(self, gradient: Tensor) -> Tensor:
        return self.by_example(gradient).reshape(self.n, 1, self.sites, self.outputs)


class ConvolutionFactors(SiteFactors):
    def __init__(self, call: LayerCall, own: tuple[str, ...], n: int, layout: Layout = "outer") -> None:
        super().__init__(call, own, n, layout)
        shape = call.weight_shape or torch.Size()
        self.kernel = shape[2:]
        self.groups = call.arguments.get("groups", 1)
        self.outputs = shape[0] // self.groups
        self.inputs = ("weight" in own) * math.prod(shape[1:]) + ("bias" in own)
        self.sites = call.shape.numel() // (n * shape[0])

    def _patches(self) -> Tensor:
        rank, x = len(self.kernel), self.call.input
        stride, dilation = (self._each(self.call.arguments.get(key, 1)) for key in ("stride", "dilation"))
        padding = self._padding(dilation)
        if rank == 2 and len(x) == self.n and "weight" in self.own:
            return self._unfolded(functional.pad(x, padding) if any(padding) else x, stride, dilation)
        if any(padding):
            x = functional.pad(x, padding)
        for d in range(rank):
            x = x.unfold(2 + d, dilation[d] * (self.kernel[d] - 1) + 1, stride[d])[..., :: dilation[d]]
        x = self.by_example(x)  # (n, rows, channels, *sites, *kernel)
        x = x.reshape(*x.shape[:2], self.groups, x.shape[2] // self.groups, *x.shape[3:])
        x = x.permute(0, 2, 1, *range(4, 4 + rank), 3, *range(4 + rank, 4 + 2 * rank))
        return self._with_ones(x.reshape(self.n, self.groups, self.sites, -1))

    def _unfolded(self, x: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
        """Patches of images by `unfold`, which is several times faster; sites run fastest in memory."""
        columns = functional.unfold(x, self.kernel, dilation, 0, stride)  # (n, channels·kernel, sites)
        columns = columns.unflatten(1, (self.groups, -1))
        if "bias" in self.own:
            columns = torch.cat([columns, torch.ones_like(columns[:, :, :1])], 2)
        return columns.mT

    def backward(self, gradient: Tensor) -> Tensor:
        b = self.by_example(gradient.flatten(2))  # (n, rows, channels, sites)
        b = b.reshape(*b.shape[:2], self.groups, self.outputs, b.shape[-1])
        return b.permute(0, 2, 1, 4, 3).reshape(self.n, self.groups, self.sites, self.outputs)

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


class EmbeddingFactors(SiteFactors):
    """U is one-hot: overlaps are equalities of tokens, and gradients are scattered to rows."""

    one_hot = True

    def __init__(self, call: LayerCall, own: tuple[str, ...], n: int, layout: Layout = "outer") -> None:
        super().__init__(call, own, n, layout)
        self.inputs, self.outputs = call.weight_shape or (0, 0)
        self.sites = call.shape.numel() // (n * self.outputs)
        self.tokens = self.by_example(call.input).reshape(n, self.sites)
        padding = call.arguments.get("padding_idx")
        if padding is None:
            self.counted = torch.ones_like(self.tokens, dtype=torch.bool)
        else:
            self.counted = self.tokens != padding % self.inputs

    def _patches(self) -> Tensor:
        raise NotImplementedError("equal tokens are counted instead")

    def overlaps(self, other: SiteFactors) -> Tensor:
        assert isinstance(other, EmbeddingFactors)  # the same layer on other examples
        return (self.tokens.flatten()[:, None] == other.tokens.flatten()[None])[None]

    def overlaps_within(self) -> Tensor:
        return (self.tokens[:, None, :, None] == self.tokens[:, None, None, :]).to(self.call.dtype)

    def backward(self, gradient: Tensor) -> Tensor:
        b = self.by_example(gradient).reshape(self.n, 1, self.sites, self.outputs)
        return b * self.counted[:, None, :, None]

    def gradients(self, b: Tensor) -> Tensor:
        return self._scattered(b).flatten(-2)

    def parameter_gradients(self, b: Tensor) -> dict[str, Tensor]:
        return {"weight": self._scattered(b)}

    def _scattered(self, b: Tensor) -> Tensor:
        rows = b.new_zeros(*b.shape[:-3], self.inputs, self.outputs)  # (..., N, V, E)
        index = self.tokens[..., None].expand(*b.shape[:-3], self.sites, self.outputs)
        return rows.scatter_add_(-2, index, b.squeeze(-3))


class AffineFactors(Factors):
    """Scale and shift of a normalisation: few parameters, so their gradients are formed."""

    def __init__(self, call: LayerCall, own: tuple[str, ...], n: int, layout: Layout = "outer") -> None:
        super().__init__(call, own, n, layout)
        self._standard: Tensor | None = None

    @property
    def standard(self) -> Tensor:
        """The normalised input x̂, of the shape of the output."""
        if self._standard is None:
            plain = {
                key: value for key, value in self.call.arguments.items() if key not in ("weight", "bias")
            }
            self._standard = getattr(functional, self.call.layer)(**plain)
        return self._standard

    def backward(self, gradient: Tensor) -> Tensor:
        return gradient

    def parameter_gradients(self, b: Tensor) -> dict[str, Tensor]:
        products = {"weight": lambda: b * self.standard, "bias": lambda: b}
        return {name: self._summed(products[name]()) for name in self.own}

    def gradients(self, b: Tensor) -> Tensor:
        return torch.cat([g.flatten(1) for g in self.parameter_gradients(b).values()], 1)

    def _summed(self, product: Tensor) -> Tensor:
        """Sum over sites."""
        product = self.by_example(product)  # (N, rows, ...)
        if self.call.layer in ("layer_norm", "rms_norm"):
            return product.flatten(1, -1 - len(self.call.weight_shape or ())).sum(1)
        return product.flatten(3).sum((1, 3)) if product.ndim > 3 else product.sum(1)


RULES: dict[str, type[Factors]] = {
    "linear": LinearFactors,
    "conv1d": ConvolutionFactors,
    "conv2d": ConvolutionFactors,
    "conv3d": ConvolutionFactors,
    "embedding": EmbeddingFactors,
    "layer_norm": AffineFactors,
    "rms_norm": AffineFactors,
    "group_norm": AffineFactors,
    "batch_norm": AffineFactors,
}


def rule_of(call: LayerCall) -> type[Factors] | None:
    """The rule for a call, or None if it must be treated by the definition."""
    given: dict[str, Any] = call.arguments
    if call.layer == "embedding" and (given.get("max_norm") is not None or given.get("scale_grad_by_freq")):
        return None
    if call.layer == "batch_norm" and given.get("training"):
        return None
    if call.layer.startswith("conv") and len(call.shape) != len(call.weight_shape or ()):
        return None  # an image without a batch axis
    if set(call.parameters) - {"weight", "bias"}:
        return None  # a parameter is the input
    return RULES[call.layer]

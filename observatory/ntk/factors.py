"""What each kind of layer contributes to the kernel, from one recorded call.

The gradient of a layer's weight for example i in output direction v factorises over sites s (positions of a
convolution, tokens of a sequence, one for a vector): G_i = Σ_s B_i[s] U_i[s]ᵀ, with U the inputs (patches) and
B = ∂(v·f_i)/∂(output). A bias is a further input that is always one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from observatory.looking.calls import LeafCall


class Factors(ABC):
    """One recorded call, its tensors arranged by example.

    Args:
        call: with the parameters `own` of it that belong to this contribution.
        n: number of examples.
        axis: of the call's tensors that runs over examples; it may run over several rows of each example.
    """

    def __init__(self, call: LeafCall, own: tuple[str, ...], n: int, axis: int = 0) -> None:
        self.call, self.own, self.n, self.axis = call, own, n, axis

    @abstractmethod
    def backward(self, gradient: Tensor) -> Tensor:
        """B by example, from the gradient with respect to the output of the call."""

    @abstractmethod
    def parameter_gradients(self, b: Tensor) -> dict[str, Tensor]:
        """Per-example gradients (N, *parameter) of the parameters by own name."""

    def by_example(self, tensor: Tensor) -> Tensor:
        """(N, rows of one example, ...) of a tensor of the call."""
        tensor = tensor.movedim(self.axis, 0)
        return tensor.reshape(self.n, -1, *tensor.shape[1:])


class SiteFactors(Factors):
    """Contributions that factorise over sites: linear maps, convolutions, embeddings."""

    groups: int = 1  # of channels that do not mix
    sites: int  # per example
    inputs: int  # per group and site; 0 where U is never formed
    outputs: int  # per group and site

    @abstractmethod
    def patches(self) -> Tensor:
        """U, (N, groups, sites, inputs), with a last column of ones if the bias takes part."""

    def overlaps(self, other: SiteFactors) -> Tensor:
        """U_i[s] · U_j[t], (groups, N·sites, M·sites)."""
        left = self.patches().transpose(0, 1).flatten(1, 2)
        right = left if other is self else other.patches().transpose(0, 1).flatten(1, 2)
        return left @ right.mT

    def gradients(self, b: Tensor) -> Tensor:
        """All per-example gradients in one row each, (..., N, P of this contribution), from B (..., N, g, s, o)."""
        return (b.mT @ self.patches()).flatten(-3)

    def parameter_gradients(self, b: Tensor) -> dict[str, Tensor]:
        joint = b.mT @ self.patches()  # (N, groups, outputs, inputs)
        found = {}
        if "bias" in self.own:
            found["bias"] = joint[..., -1].flatten(1)
            joint = joint[..., :-1]
        if "weight" in self.own:
            found["weight"] = joint.reshape(len(b), *self.call.module.weight.shape)  # type: ignore[operator]
        return found

    def _with_ones(self, patches: Tensor) -> Tensor:
        if "weight" not in self.own:
            return torch.ones_like(patches[..., :1])
        if "bias" not in self.own:
            return patches
        return torch.cat([patches, torch.ones_like(patches[..., :1])], -1)


class LinearFactors(SiteFactors):
    def __init__(self, call: LeafCall, own: tuple[str, ...], n: int, axis: int = 0) -> None:
        super().__init__(call, own, n, axis)
        self.outputs = call.shape[-1]
        self.inputs = ("weight" in own) * call.inputs[0].shape[-1] + ("bias" in own)
        self.sites = call.shape.numel() // (n * self.outputs)

    def patches(self) -> Tensor:
        return self._with_ones(self.by_example(self.call.inputs[0]).reshape(self.n, 1, self.sites, -1))

    def backward(self, gradient: Tensor) -> Tensor:
        return self.by_example(gradient).reshape(self.n, 1, self.sites, self.outputs)


class ConvolutionFactors(SiteFactors):
    def __init__(self, call: LeafCall, own: tuple[str, ...], n: int, axis: int = 0) -> None:
        super().__init__(call, own, n, axis)
        self.layer: Any = call.module
        self.groups = self.layer.groups
        self.outputs = self.layer.out_channels // self.groups
        weights = math.prod(self.layer.weight.shape[1:])
        self.inputs = ("weight" in own) * weights + ("bias" in own)
        self.sites = call.shape.numel() // (n * self.layer.out_channels)

    def patches(self) -> Tensor:
        layer, x = self.layer, self.call.inputs[0]
        if layer.padding_mode != "zeros":
            x = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        elif layer.padding == "same":
            x = nn.functional.pad(x, layer._reversed_padding_repeated_twice)
        elif any(layer.padding):
            x = nn.functional.pad(x, [p for size in reversed(layer.padding) for p in (size, size)])
        for d, (k, stride, dilation) in enumerate(
            zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
        ):
            x = x.unfold(2 + d, dilation * (k - 1) + 1, stride)[..., ::dilation]
        rank = len(layer.kernel_size)  # (rows, channels, *sites, *kernel)
        x = x.reshape(self.n, -1, self.groups, x.shape[1] // self.groups, *x.shape[2:])
        x = x.permute(0, 2, 1, *range(4, 4 + rank), 3, *range(4 + rank, 4 + 2 * rank))
        return self._with_ones(x.reshape(self.n, self.groups, self.sites, -1))

    def backward(self, gradient: Tensor) -> Tensor:
        b = gradient.reshape(self.n, -1, self.groups, self.outputs, math.prod(gradient.shape[2:]))
        return b.permute(0, 2, 1, 4, 3).reshape(self.n, self.groups, self.sites, self.outputs)


class EmbeddingFactors(SiteFactors):
    """U is one-hot: overlaps are equalities of tokens, and gradients are scattered to rows."""

    inputs = 0

    def __init__(self, call: LeafCall, own: tuple[str, ...], n: int, axis: int = 0) -> None:
        super().__init__(call, own, n, axis)
        self.layer: Any = call.module
        self.outputs = call.shape[-1]
        self.sites = call.shape.numel() // (n * self.outputs)
        self.tokens = self.by_example(call.inputs[0]).reshape(n, self.sites)
        padding = self.layer.padding_idx
        self.counted = torch.ones_like(self.tokens, dtype=torch.bool) if padding is None else self.tokens != padding

    def patches(self) -> Tensor:
        one_hot = nn.functional.one_hot(self.tokens, self.layer.num_embeddings) * self.counted[..., None]
        return one_hot[:, None].float()

    def overlaps(self, other: SiteFactors) -> Tensor:
        assert isinstance(other, EmbeddingFactors)  # the same module on other examples
        equal = self.tokens.flatten()[:, None] == other.tokens.flatten()[None]
        return (equal & self.counted.flatten()[:, None])[None]

    def backward(self, gradient: Tensor) -> Tensor:
        b = self.by_example(gradient).reshape(self.n, 1, self.sites, self.outputs)
        return b * self.counted[:, None, :, None]

    def gradients(self, b: Tensor) -> Tensor:
        return self._scattered(b).flatten(-2)

    def parameter_gradients(self, b: Tensor) -> dict[str, Tensor]:
        return {"weight": self._scattered(b)}

    def _scattered(self, b: Tensor) -> Tensor:
        rows = b.new_zeros(*b.shape[:-3], self.layer.num_embeddings, self.outputs)  # (..., N, V, E)
        index = self.tokens[..., None].expand(*b.shape[:-3], self.sites, self.outputs)
        return rows.scatter_add_(-2, index, b.squeeze(-3))


class AffineFactors(Factors):
    """Scale and shift of a normalisation: few parameters, so their gradients are formed."""

    def __init__(self, call: LeafCall, own: tuple[str, ...], n: int, axis: int = 0) -> None:
        super().__init__(call, own, n, axis)
        self.layer: Any = call.module
        self._standard: Tensor | None = None

    @property
    def standard(self) -> Tensor:
        """The normalised input x̂, of the shape of the output."""
        if self._standard is None:
            self._standard = self._normalised(self.call.inputs[0])
        return self._standard

    def _normalised(self, x: Tensor) -> Tensor:
        layer, f = self.layer, nn.functional
        if isinstance(layer, nn.LayerNorm):
            return f.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        if isinstance(layer, nn.RMSNorm):
            return f.rms_norm(x, layer.normalized_shape, eps=layer.eps)
        if isinstance(layer, nn.GroupNorm):
            return f.group_norm(x, layer.num_groups, eps=layer.eps)
        return f.batch_norm(x, self.call.buffers["running_mean"], self.call.buffers["running_var"], eps=layer.eps)

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
        if isinstance(self.layer, nn.LayerNorm | nn.RMSNorm):
            return product.flatten(1, -1 - len(self.layer.normalized_shape)).sum(1)
        return product.flatten(3).sum((1, 3)) if product.ndim > 3 else product.sum(1)


_Make = Callable[[LeafCall, tuple[str, ...], int, int], Factors]
_RULES: dict[type[nn.Module], _Make] = {
    nn.Linear: LinearFactors,
    nn.Conv1d: ConvolutionFactors,
    nn.Conv2d: ConvolutionFactors,
    nn.Conv3d: ConvolutionFactors,
    nn.Embedding: EmbeddingFactors,
    nn.LayerNorm: AffineFactors,
    nn.RMSNorm: AffineFactors,
    nn.GroupNorm: AffineFactors,
    nn.BatchNorm1d: AffineFactors,
    nn.BatchNorm2d: AffineFactors,
    nn.BatchNorm3d: AffineFactors,
    nn.SyncBatchNorm: AffineFactors,
}


def rule_of(module: nn.Module) -> _Make | None:
    """The rule for a module, or None if it must be treated by the definition.

    A subclass is covered if it computes what its base does: it inherits `forward`.
    """
    for base, rule in _RULES.items():
        if isinstance(module, base) and type(module).forward is base.forward:
            return rule if _plain(module) else None
    return None


def _plain(module: Any) -> bool:
    """Whether nothing changes what the module's class computes."""
    if nn.utils.parametrize.is_parametrized(module) or module._forward_pre_hooks or module._forward_hooks:
        return False
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return bool(module.track_running_stats)
    return True

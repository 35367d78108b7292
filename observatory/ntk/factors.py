"""What each kind of layer contributes to the kernel, from one recorded call.

The gradient of a layer's weight for example i in output direction v factorises over sites s (positions of a
convolution, tokens of a sequence, one for a vector): G_i = Σ_s B_i[s] U_i[s]ᵀ, with U the inputs (patches)
and B = ∂(v·f_i)/∂(output). A bias is a further input that is always one.

Everything that depends on a direction has the directions as its first axis, D.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from observatory.looking.calls import LayerCall
from observatory.looking.pooling import Pooled
from observatory.ntk.grams import TILE_NUMBERS, Scratch

CACHED_NUMBERS = 2**18  # of patches or gradients that stay in a CPU's cache
REREAD_NUMBERS = 2**20  # of patches that are read again for each direction
FORMED_NUMBERS = 2**22  # of those that are formed at a time elsewhere

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
        self.weighted, self.biased = "weight" in own, "bias" in own

    @property
    def asked(self) -> LayerCall | Pooled:
        """Whose output's gradients `backward` is given."""
        return self.call

    @abstractmethod
    def backward(self, gradient: Tensor) -> Tensor:
        """B by example, from the gradients (D, *output) of what is asked."""

    @abstractmethod
    def parameter_gradients(self, b: Tensor) -> dict[str, Tensor]:
        """Per-example gradients (D, N, *parameter) of the parameters by own name, from B."""

    def by_example(self, tensor: Tensor) -> Tensor:
        """(D, N, rows of one example, ...) of a tensor (D, ...) of the call."""
        return by_example(tensor, self.n, self.layout)


def by_example(tensor: Tensor, n: int, layout: Layout) -> Tensor:
    """(D, n, rows of one example, ...) of a tensor (D, ...) of a call."""
    rest = tensor.shape[2:]
    if layout == "outer":
        return tensor.reshape(len(tensor), n, -1, *rest)
    if layout == "inner":
        tensor = tensor.reshape(len(tensor), -1, n, *rest)
    return tensor.transpose(1, 2)


class SiteFactors(Factors):
    """What factorises over sites: linear maps, convolutions, embeddings. B is (D, N, g, s, o)."""

    groups: int = 1  # g, of channels that do not mix
    sites: int  # s, per example
    inputs: int  # per group and site
    outputs: int  # o, per group and site
    one_hot = False  # whether U is one-hot, and never formed
    summing = False  # whether gradients are summed from some rows of U, which are chosen

    @property
    def tile(self) -> int:
        """Numbers of gradients that are formed at a time, of some outputs."""
        return TILE_NUMBERS

    @abstractmethod
    def _patches(self, at: slice) -> Tensor:
        """U of some examples from the call's input, (n, groups, sites, inputs)."""

    @cached_property
    def unbiased(self) -> Tensor:
        """U, (N, groups, sites, inputs), without the one for the bias."""
        return self._unbiased(slice(None))

    def _unbiased(self, at: slice) -> Tensor:
        if self.weighted:
            return self._patches(at)
        n = len(range(self.n)[at])
        return torch.ones(()).to(self.call.input).expand(n, self.groups, self.sites, 0)

    @cached_property
    def patches(self) -> Tensor:
        """U, (N, groups, sites, columns): the inputs, and one for the bias."""
        return self._biased(slice(None))

    def _biased(self, at: slice) -> Tensor:
        patches = self._unbiased(at)
        return functional.pad(patches, (0, 1), value=1.0) if self.biased else patches

    @property
    def columns(self) -> int:
        """Of U."""
        return self.weighted * self.inputs + self.biased

    def overlaps(self, other: SiteFactors, i: slice, j: slice) -> Tensor:
        """U_i[s] · U_j[t] of these examples with those of the same layer elsewhere, (groups, i·s, j·t)."""
        one, two = (f.unbiased[at].transpose(0, 1).flatten(1, 2) for f, at in ((self, i), (other, j)))
        product = one @ two.mT
        return product.add_(1) if self.biased else product

    def overlaps_within(self) -> Tensor:
        """U_i[s] · U_i[t], (N, groups, s, t)."""
        product = self.unbiased @ self.unbiased.mT
        return product.add_(1) if self.biased else product

    def gradients(
        self, b: Sequence[Tensor], at: slice = slice(None), scratch: Scratch | None = None
    ) -> Tensor:
        """G of some outputs of each group, (D, N, groups·outputs·columns).

        Args:
            b: B of some directions after the other, (D', N, g, s, o) each.
            at: which outputs.
            scratch: memory that may be taken for them until it is used again; default fresh memory.

        Returns:
            Contiguous, or the transpose of what is, (N, D, groups·outputs·columns).
        """
        each = [one for part in b for one in part]
        outputs = len(range(self.outputs)[at])
        shape = (len(each), self.n, self.groups, outputs, self.columns)
        out = (scratch or Scratch()).of(shape, like=each[0])
        whole = outputs == self.outputs and len(each) > 1
        step = self._formed_at_once if len(each) > 1 else self.n
        for k in range(0, self.n, step):  # patches stay near from one direction to the next
            some = slice(k, k + step)
            patches = self._forming_patches(some, whole=whole).flatten(0, 1)
            for one, target in zip(each, out, strict=True):
                torch.bmm(self._rows(one, some, at).flatten(0, 1), patches, out=target[some].flatten(0, 1))
        return out.view(len(each), self.n, -1)

    def _rows(self, b: Tensor, examples: slice, at: slice) -> Tensor:
        """(n, g, o, s) of some examples and outputs, from B in one direction."""
        return b[examples, ..., at].mT

    def _forming_patches(self, examples: slice, *, whole: bool) -> Tensor:
        """U of some examples, to form gradients of the whole weight or of a part of it.

        Used once for some directions, it is made where it is needed: memory is dearer than that.
        """
        return self._biased(examples) if whole else self.patches[examples]

    @property
    def _formed_at_once(self) -> int:
        """Examples whose patches are read again for each direction."""
        return max(1, REREAD_NUMBERS // (self.groups * self.sites * self.columns))

    def by_sites(self, b: Tensor) -> Tensor:
        """B (D, N, g, s, o), where it is kept in another form."""
        return b

    def squared_norms(self, b: Tensor) -> Tensor:
        """‖G‖² in each direction and of each example, (D, N), from B: gradients are formed and forgotten."""
        rows = [one.mT.flatten(0, 1) for one in b]  # (N·g, o, s) for each direction
        squares = b.new_zeros(len(rows), len(rows[0]))
        if self.biased:
            squares += torch.stack([one.sum(2).square().sum(1) for one in rows])
        if self.weighted:
            squares += self._weight_norms(rows).square()
        return squares.unflatten(1, (self.n, self.groups)).sum(2)

    def _weight_norms(self, rows: Sequence[Tensor]) -> Tensor:
        """‖G‖ without the bias in each direction, by example and group, (D, N·g)."""
        step = min(self._examples_at_once, self.n)
        formed = rows[0].new_empty(step * self.groups, self.outputs, self.inputs)
        norms = formed.new_empty(len(rows), len(rows[0]))
        cut = [
            zip(one.split(len(formed)), target.split(len(formed)), strict=True)
            for one, target in zip(rows, norms, strict=True)
        ]
        for patches, *pairs in zip(self.blocks(step), *cut, strict=True):
            u = patches.flatten(0, 1)
            for b_t, target in pairs:
                torch.linalg.vector_norm(torch.bmm(b_t, u, out=formed[: len(u)]), dim=(1, 2), out=target)
        return norms

    def blocks(self, step: int) -> Iterator[Tensor]:
        """`unbiased` U of `step` examples after the others, each valid until the next is asked for."""
        yield from self.unbiased.split(step)

    @property
    def _examples_at_once(self) -> int:
        """Examples whose gradients, with all that these are formed from, stay in a CPU's cache."""
        fitting = CACHED_NUMBERS if self.call.input.device.type == "cpu" else FORMED_NUMBERS
        return max(1, fitting // (self.copied + self.numbers + self.groups * self.sites * self.outputs))

    def parameter_gradients(self, b: Tensor) -> dict[str, Tensor]:
        joint = self.gradients([b]).unflatten(2, (-1, self.columns))  # (D, N, groups·outputs, columns)
        found = {"bias": joint[..., -1]} if self.biased else {}
        if self.weighted:
            found["weight"] = self._as_weight(joint[..., : self.inputs])
        return found

    def _as_weight(self, gradients: Tensor) -> Tensor:
        """(D, N, *weight) of (D, N, groups·outputs, inputs)."""
        return gradients.reshape(*gradients.shape[:2], *(self.call.weight_shape or ()))

    # Numbers of multiplications, for choosing between ways

    @property
    def forming(self) -> int:
        """For the gradient of one example in one direction."""
        return self.groups * self.sites * self.outputs * (1 if self.one_hot else self.columns)

    @property
    def overlapping(self) -> int:
        """For the overlaps of one site with another."""
        return self.groups * (1 if self.one_hot else self.columns)

    @property
    def numbers(self) -> int:
        """In the gradient of one example."""
        return self.groups * self.outputs * self.columns

    @property
    def copied(self) -> int:
        """Numbers of U that have to be copied for one example; those of a linear map are the input itself."""
        return 0


class LinearFactors(SiteFactors):
    def __init__(self, call: LayerCall, own: tuple[str, ...], n: int, layout: Layout = "outer") -> None:
        super().__init__(call, own, n, layout)
        self.outputs, self.inputs = call.shape[-1], call.input.shape[-1]
        self.sites = call.shape.numel() // (n * self.outputs)

    def _patches(self, at: slice) -> Tensor:
        return self.by_example(self.call.input[None])[0, at].reshape(-1, 1, self.sites, self.inputs)

    def backward(self, gradient: Tensor) -> Tensor:
        shape = (len(gradient), self.n, 1, self.sites, self.outputs)
        return self.by_example(gradient).reshape(shape)


class EmbeddingFactors(SiteFactors):
    """U is one-hot: overlaps are equalities of tokens, and gradients are scattered to rows.

    B is zero at padding tokens, whose rows have no gradient.
    """

    one_hot = True

    def __init__(self, call: LayerCall, own: tuple[str, ...], n: int, layout: Layout = "outer") -> None:
        super().__init__(call, own, n, layout)
        self.inputs, self.outputs = call.weight_shape or (0, 0)
        self.sites = call.shape.numel() // (n * self.outputs)
        self.tokens = self.by_example(call.input[None]).reshape(n, self.sites)
        padding = call.arguments.get("padding_idx")
        self.counted = None if padding is None else self.tokens != padding % self.inputs

    def _patches(self, at: slice) -> Tensor:
        raise NotImplementedError("equal tokens are counted instead")

    def overlaps(self, other: SiteFactors, i: slice, j: slice) -> Tensor:
        assert isinstance(other, EmbeddingFactors)  # the same layer on other examples
        equal = self.tokens[i].flatten()[:, None] == other.tokens[j].flatten()
        return equal[None].to(self.call.dtype)

    def overlaps_within(self) -> Tensor:
        return (self.tokens[:, None, :, None] == self.tokens[:, None, None, :]).to(self.call.dtype)

    def backward(self, gradient: Tensor) -> Tensor:
        b = self.by_example(gradient).reshape(len(gradient), self.n, 1, self.sites, self.outputs)
        return b if self.counted is None else b * self.counted[:, None, :, None]

    def gradients(
        self, b: Sequence[Tensor], at: slice = slice(None), scratch: Scratch | None = None
    ) -> Tensor:
        rows = torch.cat(list(b))[:, :, 0, :, at]  # (D, N, s, o)
        shape = (*rows.shape[:2], self.inputs, rows.shape[-1])
        found = (scratch or Scratch()).of(shape, like=rows).zero_()
        found.scatter_add_(2, self.tokens[None, :, :, None].expand(rows.shape), rows)
        return found.flatten(2)

    def parameter_gradients(self, b: Tensor) -> dict[str, Tensor]:
        return {"weight": self.gradients([b]).unflatten(2, (self.inputs, self.outputs))}

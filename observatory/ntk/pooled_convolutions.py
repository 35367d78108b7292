"""Convolutions whose outputs are only pooled: gradients from as many sites as there are windows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from observatory.looking.calls import LayerCall
from observatory.looking.pooling import Pooled
from observatory.ntk.convolutions import ConvolutionFactors
from observatory.ntk.factors import CACHED_NUMBERS, FORMED_NUMBERS, Layout
from observatory.ntk.grams import Scratch

SPREAD_NUMBERS = 2**16  # of B that stay in a CPU's cache from where they are spread to where they are used
SUMMED_NUMBERS = 2**21  # of gradients that are summed at a time, in fresh memory
LINE = 16  # numbers of a cache line; rows that begin with one are read faster
SITES_OF_WINDOW = 4  # at which a sum over windows, patch by patch, is as fast as a matrix product over sites
OUTPUTS = 16  # of each group; for fewer it is not worth while to copy patches


def sums_chosen_patches(call: LayerCall) -> bool:
    """Whether gradients are best summed from the patches of largest values, as FBGEMM sums an embedding bag.

    Those of one example stay in the cache, which also keeps the sums short: added in single precision one
    after the other, W windows come with an error of up to W/2 roundings.
    """
    assert call.pooled is not None and call.weight_shape is not None
    outputs = call.weight_shape[0] // int(call.arguments.get("groups", 1))
    patches = call.shape[2:].numel() * call.weight_shape[1:].numel()
    fast = call.input.device.type == "cpu" and call.input.dtype == torch.float32 and _has_fast_sum()
    few = call.pooled.pool.step >= SITES_OF_WINDOW
    return fast and few and "weight" in call.parameters and outputs >= OUTPUTS and patches <= CACHED_NUMBERS


def _has_fast_sum() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


class PooledConvolutionFactors(ConvolutionFactors):
    """A convolution whose output is only pooled: B is kept by window, (D, N, channels, *windows).

    It vanishes at all sites but that of the largest value of each window. A gradient is the sum of the
    patches chosen so; if not `summing`, B is spread over all sites.
    """

    def __init__(
        self, call: LayerCall, own: tuple[str, ...], n: int, layout: Layout = "outer", *, summing: bool
    ) -> None:
        super().__init__(call, own, n, layout)
        assert call.pooled is not None  # or this would not be its rule
        self._pooled, self.summing = call.pooled, summing
        self.windows = call.pooled.shape[2:].numel()

    @property
    def asked(self) -> Pooled:
        return self._pooled

    def backward(self, gradient: Tensor) -> Tensor:
        return gradient

    @property
    def columns(self) -> int:
        """Of U; in sums followed by zeros up to whole cache lines, if these are no more than a quarter."""
        columns = super().columns
        padded = -(-columns // LINE) * LINE
        return padded if self.summing and 4 * padded <= 5 * columns else columns

    @property
    def tile(self) -> int:
        return SUMMED_NUMBERS if self.summing else super().tile

    @property
    def forming(self) -> int:
        if not self.summing:
            return super().forming
        return SITES_OF_WINDOW * self.groups * self.windows * self.outputs * self.columns

    @cached_property
    def _chosen(self) -> Tensor:
        """Which row of all patches is that of each window's largest, (N, groups, outputs, windows)."""
        places = self._pooled.pool.places.flatten(2).int()
        places.clamp_(max=self.sites - 1)  # that of an empty window is outside
        first = torch.arange(0, self.n * self.groups * self.sites, self.sites).to(places)
        rows = places.view(self.n, self.groups, self.outputs, -1)
        return rows.add_(first.view(self.n, self.groups, 1, 1))

    def gradients(
        self, b: Sequence[Tensor], at: slice = slice(None), scratch: Scratch | None = None
    ) -> Tensor:
        if not self.summing:
            return super().gradients(b, at, scratch)
        chosen = self._chosen[:, :, at]
        each = [one.reshape(self._chosen.shape)[:, :, at] for part in b for one in part]
        if self.windows > self.columns:  # B is not copied to one place where it is larger than what is summed
            return torch.stack([self._sums(chosen, one) for one in each])
        together = torch.stack(each, 1)  # an example's patches are in the cache for all of its directions
        return self._sums(chosen[:, None].expand(together.shape), together).transpose(0, 1)

    def _sums(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Σ over windows of patches and weights, (n, ..., g, o, windows) each, as (n, ..., g·o·columns)."""
        sums = functional.embedding_bag(
            rows.flatten(0, -2),
            self.patches.view(-1, self.columns),
            per_sample_weights=weights.flatten(0, -2),
            mode="sum",
        )
        return sums.view(*weights.shape[:-3], -1)

    def by_sites(self, b: Tensor) -> Tensor:
        spread = [self._pooled.pool.spread(one) for one in b]
        return super().backward(spread[0][None] if len(spread) == 1 else torch.stack(spread))

    def squared_norms(self, b: Tensor) -> Tensor:
        if not self.summing:
            return super().squared_norms(self.by_sites(b))
        weights, norms = b.reshape(len(b), *self._chosen.shape), b.new_empty(len(b), self.n)
        step = self._examples_at_once
        for k in range(0, self.n, step):
            some = slice(k, k + step)
            for one, target in zip(weights, norms, strict=True):
                torch.linalg.vector_norm(self._sums(self._chosen[some], one[some]), dim=1, out=target[some])
        return norms.square_()

    def _rows(self, b: Tensor, examples: slice, at: slice) -> Tensor:
        spread = self._pooled.pool.spread(b[examples], examples)
        return spread.reshape(len(spread), self.groups, self.outputs, self.sites)[:, :, at]

    def _forming_patches(self, examples: slice, *, whole: bool) -> Tensor:
        return self.patches[examples]

    @property
    def _formed_at_once(self) -> int:
        fitting = SPREAD_NUMBERS if self.call.input.device.type == "cpu" else FORMED_NUMBERS
        return max(1, fitting // (self.groups * self.outputs * self.sites))

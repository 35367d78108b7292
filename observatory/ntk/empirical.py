"""The empirical neural tangent kernel Θ = J Jᵀ, J = ∂f/∂θ, of a model on a set of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from observatory.looking.calls import record_calls
from observatory.looking.look import Loss
from observatory.looking.model import Forward, ModelFunction, Output
from observatory.looking.probe import Probe, rows
from observatory.ntk.blocks import Block
from observatory.ntk.claims import claims_of
from observatory.ntk.directions import CROSSED, KINDS, Kind, Sites, output_directions
from observatory.ntk.nonfinite import all_finite, not_finite
from observatory.ntk.sizes import sizes_of


def empirical_ntk(
    model: nn.Module | ModelFunction,
    x: Any,
    x2: Any = None,
    *,
    kind: Kind = "full",
    outputs: Sites = "flat",
    index: int | None = None,
    targets: Tensor | None = None,
    targets2: Tensor | None = None,
    loss: Loss | None = None,
    layer_scale: Mapping[str, float] | None = None,
    max_memory: int = 2**30,
    max_kernel: int = 2**32,
    allow_nonfinite: bool = False,
    forward: Forward | None = None,
    output: Output | None = None,
    select: str | Callable[[str], bool] | None = None,
) -> Tensor:
    """Θ_(ic)(jd) = ∇f_c(x_i) · ∇f_d(x_j), gradients with respect to the trainable parameters as stored.

    Layer by layer (Novak, Sohl-Dickstein, Schoenholz 2022, arXiv:2206.08720, structured derivatives): one
    forward pass, one backward pass per output to the activations only, and small Gram matrices. Parameters
    that no rule covers are treated by the definition, and the log of "observatory.ntk" names them.

    Args:
        model: a module (its mode, gradients and buffers stay as they are), looked at in evaluation mode.
        x: N examples along the first axis of a tensor, or of the tensors in a nested structure.
        x2: M further examples for a cross kernel; default x itself.
        kind: with C outputs per example,
            "full": (N, C, M, C); "trace": Σ_c Θ_(ic)(jc), (N, M), a sum; "mean": the same divided by C;
            "sum_of_logits": (1/C) Σ_cd Θ_(ic)(jd) (Mohamadi, Bae, Sutherland 2023, arXiv:2206.12543);
            "output": Θ_(ic)(jc) for c = `index`; "loss": ∇ℓ_i · ∇ℓ_j; "fisher": L_iᵀ Θ_ij L_j / N of shape
            (N, C, N, C) with L Lᵀ = diag(p) - p pᵀ, whose non-zero eigenvalues are those of the Fisher
            matrix.
        outputs: what to do with outputs of shape (N, ..., C): "flat" makes them one output of size C' per
            example, "per_site" makes every site an example of its own ("full", "trace" and "mean" only).
        index, targets, targets2, loss: for "output" and "loss".
        layer_scale: factor of each parameter's part of the kernel by regular-expression-free prefix of its
            name ("features.0"); default 1.
        max_memory: bytes that activations and gradients may take at a time.
        max_kernel: bytes that the kernel itself may take.
        allow_nonfinite: return what is not finite instead of refusing a network that has diverged.
        forward, output, select: see `ModelFunction.of`.

    Returns:
        The kernel, in the dtype of the outputs (half precision is raised to float32), on their device.

    Raises:
        ValueError: if the first axis of the output is not the examples', an example's output depends on the
            others, the kernel is larger than `max_kernel` or not finite, or an argument that the kind needs
            is missing.
    """
    function = ModelFunction.of(model, forward=forward, output=output, select=select)
    pairs = _Pairs(
        function,
        (x, x if x2 is None else x2),
        kind,
        outputs,
        index,
        (targets, targets2),
        loss,
        max_memory,
        max_kernel,
        allow_nonfinite,
    )
    if not layer_scale:
        return pairs.kernel(by_layer=False, symmetric=x2 is None)[""]
    parts = pairs.kernel(by_layer=True, symmetric=x2 is None)
    unknown = [key for key in layer_scale if not any(_below(name, key) for name in parts)]
    if unknown:
        raise ValueError(f"layer_scale names {unknown[0]!r}, which is none of {', '.join(parts)}")
    scales = [next((s for key, s in layer_scale.items() if _below(name, key)), 1.0) for name in parts]
    return torch.stack([part * scale for part, scale in zip(parts.values(), scales, strict=True)]).sum(0)


def empirical_ntk_by_layer(
    model: nn.Module | ModelFunction,
    x: Any,
    x2: Any = None,
    *,
    kind: Kind = "full",
    outputs: Sites = "flat",
    index: int | None = None,
    targets: Tensor | None = None,
    targets2: Tensor | None = None,
    loss: Loss | None = None,
    max_memory: int = 2**30,
    max_kernel: int = 2**32,
    allow_nonfinite: bool = False,
    forward: Forward | None = None,
    output: Output | None = None,
    select: str | Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """The parts of `empirical_ntk`, whose sum it is, by layer (or by parameter where several layers share
    it).

    Arguments and errors are those of `empirical_ntk`.
    """
    function = ModelFunction.of(model, forward=forward, output=output, select=select)
    pairs = _Pairs(
        function,
        (x, x if x2 is None else x2),
        kind,
        outputs,
        index,
        (targets, targets2),
        loss,
        max_memory,
        max_kernel,
        allow_nonfinite,
    )
    return pairs.kernel(by_layer=True, symmetric=x2 is None)


@dataclass
class _Pairs:
    """Pairs of blocks of examples."""

    function: ModelFunction
    xs: tuple[Any, Any]
    kind: Kind
    outputs: str
    index: int | None
    targets: tuple[Tensor | None, Tensor | None]
    loss: Loss | None
    max_memory: int
    max_kernel: int
    allow_nonfinite: bool

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        self.n, self.m = (len(Probe(x)) for x in self.xs)
        if min(self.n, self.m) == 0:
            raise ValueError("there are no examples to look at: the probe is empty")
        self.sizes = sizes_of(self.function, self.xs[0])
        self.c = self.sizes.output.numel()
        self.sites = self.sizes.output[:-1].numel() if self.outputs == "per_site" else 1
        if self.sites > 1 and self.kind not in ("full", "trace", "mean"):
            raise ValueError(
                f"outputs='per_site' goes with kind 'full', 'trace' or 'mean', not {self.kind!r}"
            )
        self.crossed = self.kind in CROSSED or self.sites > 1
        self._check_size()

    def _check_size(self) -> None:
        each = self.c if self.crossed else 1
        needed = self.n * self.m * each**2 * self.sizes.itemsize
        if needed > self.max_kernel:
            raise ValueError(
                f"the kernel of {self.n} × {self.m} examples with {each} outputs takes {needed / 1e9:.3g} of "
                f"max_kernel = {self.max_kernel / 1e9:.3g} GB: give fewer examples or take the "
                "trace-contracted one (kind='trace'); estimated_variables(model, x) needs no kernel at all"
            )

    def kernel(self, *, by_layer: bool, symmetric: bool) -> dict[str, Tensor]:
        """The kernel of every pair of examples, by layer or, under the name "", in all."""
        size = self.sizes.block(directions=self.c, crossed=self.crossed, max_memory=self.max_memory)
        parts: dict[str, Tensor] = {}
        for i in range(0, self.n, size):
            left = self._block(0, slice(i, min(i + size, self.n)))
            for j in range(i if symmetric else 0, self.m, size):
                at, of = slice(i, i + left.n), slice(j, min(j + size, self.m))
                right = left if symmetric and i == j else self._block(0 if symmetric else 1, of)
                contract = left.crossed if self.crossed else left.paired
                for name, part in contract(right, by_layer=by_layer).items():
                    if part.shape[0] == self.n and part.shape[-2 if self.crossed else -1] == self.m:
                        parts[name] = part
                        continue
                    self._place(parts, name, part, at, of, mirrored=symmetric and i != j)
        if not self.allow_nonfinite and not all(map(all_finite, parts.values())):
            raise ValueError(f"the kernel is not finite: {not_finite(self.function, self.xs)}")
        return {name: self._finished(part) for name, part in parts.items()}

    def _block(self, side: int, at: slice) -> Block:
        x, y = rows(self.xs[side], at.start, at.stop), self.targets[side]
        record = record_calls(self.function, x)
        self.sizes.check(self.function, x, record.output, at.stop - at.start)
        directions = output_directions(
            "full" if self.sites > 1 else self.kind,
            record.output.detach(),
            index=self.index,
            targets=None if y is None else y[at],
            loss=self.loss,
        )
        return Block(self.function, x, record, directions, claims_of(self.function, record))

    def _place(
        self, parts: dict[str, Tensor], name: str, part: Tensor, at: slice, of: slice, *, mirrored: bool
    ) -> None:
        """Write the kernel of two blocks into that of all."""
        if name not in parts:
            shape = (self.n, part.shape[1], self.m, part.shape[3]) if self.crossed else (self.n, self.m)
            parts[name] = part.new_zeros(shape)
        if self.crossed:
            parts[name][at, :, of] = part
            if mirrored:
                parts[name][of, :, at] = part.permute(2, 3, 0, 1)
        else:
            parts[name][at, of] = part
            if mirrored:
                parts[name][of, at] = part.T

    def _finished(self, part: Tensor) -> Tensor:
        """Normalisation, and sites as examples."""
        if self.sites > 1:
            n, m, c = part.shape[0] * self.sites, part.shape[2] * self.sites, self.c // self.sites
            part = part.reshape(n, c, m, c)
            part = part if self.kind == "full" else torch.einsum("icjc->ij", part)
            return part / c if self.kind == "mean" else part.contiguous()
        if self.kind == "mean":
            return part / self.c
        return part / self.n if self.kind == "fisher" else part.contiguous()


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")

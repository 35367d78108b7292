"""The empirical neural tangent kernel Θ = J Jᵀ, J = ∂f/∂θ, of a model on a set of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from observatory.looking.calls import record_calls
from observatory.looking.look import Loss
from observatory.looking.model import Forward, ModelFunction, Output
from observatory.looking.probe import Probe
from observatory.ntk.blocks import Block, sizes_of
from observatory.ntk.claims import claims_of
from observatory.ntk.directions import CROSSED, KINDS, Kind, output_directions
from observatory.ntk.gradients import rows


def empirical_ntk(
    model: nn.Module | ModelFunction,
    x: Any,
    x2: Any = None,
    *,
    kind: Kind = "full",
    outputs: Literal["flat", "per_site"] = "flat",
    index: int | None = None,
    targets: Tensor | None = None,
    targets2: Tensor | None = None,
    loss: Loss | None = None,
    layer_scale: Mapping[str, float] | None = None,
    max_memory: int = 2**30,
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
        forward, output, select: see `ModelFunction.of`.

    Returns:
        The kernel, in the dtype of the outputs (half precision is raised to float32), on their device.

    Raises:
        ValueError: if the first axis of the output is not the examples', outputs are not finite where the
            kind needs them, or an argument that the kind needs is missing.
    """
    parts = empirical_ntk_by_layer(
        model, x, x2, kind=kind, outputs=outputs, index=index, targets=targets, targets2=targets2, loss=loss,
        max_memory=max_memory, forward=forward, output=output, select=select,
    )  # fmt: skip
    scales = layer_scale or {}
    unknown = [key for key in scales if not any(_below(name, key) for name in parts)]
    if unknown:
        raise ValueError(f"layer_scale names {unknown[0]!r}, which is none of {', '.join(parts)}")
    total: Tensor | None = None
    for name, part in parts.items():
        scale = next((s for key, s in scales.items() if _below(name, key)), 1.0)
        part = part if scale == 1.0 else part * scale
        total = part if total is None else total.add_(part)
    assert total is not None  # at least one parameter is selected
    return total


def empirical_ntk_by_layer(
    model: nn.Module | ModelFunction,
    x: Any,
    x2: Any = None,
    *,
    kind: Kind = "full",
    outputs: Literal["flat", "per_site"] = "flat",
    index: int | None = None,
    targets: Tensor | None = None,
    targets2: Tensor | None = None,
    loss: Loss | None = None,
    max_memory: int = 2**30,
    forward: Forward | None = None,
    output: Output | None = None,
    select: str | Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """The parts of `empirical_ntk`, whose sum it is, by layer (or by parameter where several layers share
    it).

    Arguments and errors are those of `empirical_ntk`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    function = ModelFunction.of(model, forward=forward, output=output, select=select)
    n, m = len(Probe(x)), len(Probe(x if x2 is None else x2))
    if min(n, m) == 0:
        raise ValueError("there are no examples to look at: the probe is empty")
    one = sizes_of(function, x)
    sites = one.output[:-1].numel() if outputs == "per_site" else 1
    if sites > 1 and kind not in ("full", "trace", "mean"):
        raise ValueError(f"outputs='per_site' goes with kind 'full', 'trace' or 'mean', not {kind!r}")
    per_site = sites > 1
    crossed = kind in CROSSED or per_site
    c = one.output.numel()
    size = one.block(function, crossed=crossed, max_memory=max_memory)

    def block(examples: Any, start: int, stop: int, y: Tensor | None) -> Block:
        record = record_calls(function, rows(examples, start, stop))
        one.check_output(record.output, stop - start, first=start == 0 and examples is x)
        v = output_directions(
            "full" if per_site else kind,
            record.output.detach(),
            index=index,
            targets=None if y is None else y[start:stop],
            loss=loss,
        )
        claims = claims_of(function, record)
        return Block(function, rows(examples, start, stop), record, v, claims)

    parts: dict[str, Tensor] = {}
    for i in range(0, n, size):
        left = block(x, i, min(i + size, n), targets)
        for j in range(i if x2 is None else 0, m, size):
            same = x2 is None and j == i
            right = (
                left
                if same
                else block(x if x2 is None else x2, j, min(j + size, m), targets if x2 is None else targets2)
            )
            for name, part in left.parts(right, crossed=crossed):
                if name not in parts:
                    parts[name] = (
                        part.new_zeros(n, *part.shape[1:2], m, *part.shape[3:])
                        if crossed
                        else part.new_zeros(n, m)
                    )
                at, of = slice(i, i + left.n), slice(j, j + right.n)
                if crossed:
                    parts[name][at, :, of] = part
                    if x2 is None and not same:
                        parts[name][of, :, at] = part.permute(2, 3, 0, 1)
                else:
                    parts[name][at, of] = part
                    if x2 is None and not same:
                        parts[name][of, at] = part.T
    return {name: _finished(part, kind, sites, c, n) for name, part in parts.items()}


def _finished(part: Tensor, kind: Kind, sites: int, c: int, n: int) -> Tensor:
    """Normalisation, and sites as examples."""
    if sites > 1:
        n1, m1 = part.shape[0], part.shape[2]
        part = part.reshape(n1 * sites, c // sites, m1 * sites, c // sites)
        part = part if kind == "full" else torch.einsum("icjc->ij", part)
        return part / (c // sites) if kind == "mean" else part
    if kind == "mean":
        return part / c
    return part / n if kind == "fisher" else part


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")

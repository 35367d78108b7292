"""Output directions: every kernel is a contraction of gradients in some directions of the output space."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from observatory.looking.likelihood import likelihood_loss
from observatory.looking.look import Loss

Kind = Literal["full", "trace", "mean", "sum_of_logits", "output", "loss", "fisher"]
Sites = Literal["flat", "per_site"]  # outputs (N, ..., C): of N examples, or of every site an example
KINDS: tuple[Kind, ...] = ("full", "trace", "mean", "sum_of_logits", "output", "loss", "fisher")
CROSSED = ("full", "fisher")  # kernels between all pairs of directions; the others pair equal ones


def output_directions(
    kind: Kind,
    outputs: Tensor,
    *,
    index: int | None = None,
    targets: Tensor | None = None,
    loss: Loss | None = None,
) -> Tensor:
    """The directions v that make the kernel `kind`, shape (D, N, *output).

    Args:
        outputs: (N, *output), detached.
        index: of the output, for "output".
        targets: for "loss".
        loss: of (outputs, targets), mean over the examples, for "loss"; default that of the likelihood.

    Raises:
        ValueError: if an argument that the kind needs is missing or out of range.
    """
    n, c = len(outputs), outputs[0].numel()
    shape = outputs.shape[1:]
    if kind == "sum_of_logits":
        return torch.full_like(outputs, c**-0.5)[None]
    if kind == "loss":
        if targets is None:
            raise ValueError("kind='loss' needs targets=, one per example")
        return loss_gradients(outputs, targets, loss)[None]
    if kind == "fisher":
        return categorical_root(outputs.reshape(n, c)).movedim(2, 0).reshape(c, n, *shape)
    unit = torch.eye(c, dtype=outputs.dtype, device=outputs.device)
    if kind == "output":
        if index is None or not 0 <= index < c:
            raise ValueError(f"kind='output' needs index= between 0 and {c - 1}, got {index}")
        unit = unit[index : index + 1]
    return unit.reshape(-1, 1, *shape).expand(-1, n, *shape)


def loss_gradients(outputs: Tensor, targets: Tensor, loss: Loss | None = None) -> Tensor:
    """g_i = ∂ℓ_i/∂f_i of the loss of each example (not divided by N), shape of `outputs`.

    Raises:
        ValueError: if there is not one target per example, or a class is not below C.
    """
    if len(targets) != len(outputs):
        raise ValueError(
            f"{len(outputs)} examples and {len(targets)} targets: one target per example is needed"
        )
    if loss is None and not targets.is_floating_point() and int(targets.max()) >= outputs.shape[-1]:
        raise ValueError(
            f"class {int(targets.max())} among the targets, but the model has {outputs.shape[-1]} outputs"
        )
    with torch.enable_grad():
        free = outputs.detach().requires_grad_()
        value = (loss or likelihood_loss)(free, targets)
        return torch.autograd.grad(value, free)[0] * len(outputs)


def categorical_root(logits: Tensor) -> Tensor:
    """L with L Lᵀ = H = diag(p) - p pᵀ, p = softmax f: L = diag(√p) - p √pᵀ, (N, C, C), stable where p
    saturates.

    Args:
        logits: (N, C).
    """
    p = logits.softmax(-1)
    root = p.sqrt()
    return torch.diag_embed(root) - p[:, :, None] * root[:, None, :]

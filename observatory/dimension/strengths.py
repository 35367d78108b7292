"""Strengths of weights as a graph of nodes: A = |W|^q."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Power = Literal[1, 2]


def weight_strengths(weight: Tensor, *, q: Power = 2, groups: int = 1, scale: Tensor | None = None) -> Tensor:
    """A_oi = Σ |W_oi..|^q over the kernel, shape (n_out, n_in): nodes are units, or channels.

    Args:
        weight: (n_out, n_in/groups, ...) of a linear layer or a convolution.
        q: 1 or 2.
        groups: of the convolution; A is then block diagonal.
        scale: γ/√(var + ε) of a batch norm behind the layer, (n_out,), folded into the weight.

    Raises:
        ValueError: if q is neither, or the weight is no matrix or kernel.
    """
    if q not in (1, 2):
        raise ValueError(f"q must be 1 or 2, got {q!r}")
    if weight.ndim < 2:
        raise ValueError(f"expected a weight (outputs, inputs, ...), got shape {tuple(weight.shape)}")
    w = weight.detach().double()
    if scale is not None:
        w = w * scale.double().view(-1, *[1] * (w.ndim - 1))
    a = w.abs().pow(q).flatten(2).sum(-1) if w.ndim > 2 else w.abs().pow(q)
    return a if groups == 1 else torch.block_diag(*a.chunk(groups))


def in_strengths(strengths: Tensor) -> Tensor:
    """s_i = Σ_j A_ij of the nodes that the weights lead to, (..., n_out)."""
    return strengths.sum(-1)


def out_strengths(strengths: Tensor) -> Tensor:
    """s_i = Σ_k A_ki of the nodes that the weights start from, (..., n_in)."""
    return strengths.sum(-2)


def node_differences(incoming: Tensor, outgoing: Tensor, bias: Tensor | None = None) -> Tensor:
    """Σ_j (W_ij)² + b_i² - Σ_k (V_ki)² of each node between W and V, (n,).

    Conserved by gradient flow in linear and ReLU layers (Du, Hu, Lee 2018, arXiv:1806.00900). A step of plain
    SGD with learning rate η changes it by η² times the same expression of the gradients, and coupled weight
    decay λ multiplies it by (1 - ηλ)².

    Args:
        incoming: W, (n, n_in, ...).
        outgoing: V, (n_out, n, ...).
        bias: b of the node, (n,), if it has one.

    Raises:
        ValueError: if W does not lead to as many nodes as V starts from.
    """
    if incoming.shape[0] != outgoing.shape[1]:
        raise ValueError(f"{incoming.shape[0]} nodes are reached and {outgoing.shape[1]} are left")
    entering = in_strengths(weight_strengths(incoming))
    if bias is not None:
        entering = entering + bias.detach().double().square()
    return entering - out_strengths(weight_strengths(outgoing))

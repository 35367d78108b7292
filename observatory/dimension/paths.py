"""Weights of paths through a network: which nodes do they pass?

A path picks one node per layer; its weight is the product of the A it passes, A = |W|^q. The total through
node i of layer l is a_i b_i, with a carried forward from the inputs and b backward from the outputs, so that
no path is ever enumerated (Neyshabur, Tomioka, Srebro 2015, COLT, for the sum over all of them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.dimension.shares import NodeShares, node_shares

INPUT = 0  # number of the network's input among the layers


@dataclass(frozen=True, eq=False)
class PathWeights:
    """Totals over the paths through the nodes of the input (0) and of every layer (1 ... L)."""

    log_total: Tensor  # ln Φ through each, (L + 1,); equal in a chain, elsewhere paths may skip a layer
    nodes: list[NodeShares]  # φ_i/Σφ in each
    edges: list[Tensor]  # shares of all paths that pass each weight, (n_l, n_{l-1}), of l = 1 ... L


def path_weights(
    strengths: Sequence[Tensor],
    *,
    sources: Sequence[Sequence[int]] | None = None,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
) -> PathWeights:
    """Path weights through layers of non-negative matrices A, renormalised everywhere and carried as ln Φ.

    Args:
        strengths: A of layers 1 ... L, (n_out, n_in), in an order in which they can be evaluated.
        sources: for each layer those whose sum it is applied to, 0 being the network's input; default the one
            before. A residual block x + g(x) is a layer after it with two sources: A = 1 + A_g.
        inputs: importance a⁰ ≥ 0 of the inputs, (n_0,); default ones.
        outputs: b of the nodes that nothing follows, such as one for a chosen output and zero for the others;
            default ones.

    Raises:
        ValueError: if there is no layer or the shapes do not match.
    """
    chain = [a.detach().double() for a in strengths]
    feeds = [[k] for k in range(len(chain))] if sources is None else [list(s) for s in sources]
    sizes = _sizes(chain, feeds)
    forward = [_scaled(_start(inputs, sizes[INPUT], chain[0]))]
    entering = []
    for a, feed in zip(chain, feeds, strict=True):
        entering.append(_sum([forward[k] for k in feed]))
        forward.append(_scaled(a @ entering[-1][0], entering[-1][1]))
    backward: list[list[Carried]] = [[] for _ in sizes]
    leaving: list[Carried] = []
    for number in range(len(chain), -1, -1):
        b = _sum(backward[number] or [_scaled(_start(outputs, sizes[number], chain[0]))])
        leaving.append(b)
        if number > INPUT:
            back = _scaled(chain[number - 1].mT @ b[0], b[1])
            for source in feeds[number - 1]:
                backward[source].append(back)
    leaving = leaving[::-1]
    through = [_scaled(f[0] * b[0], f[1] + b[1]) for f, b in zip(forward, leaving, strict=True)]
    log_total = torch.stack([phi.sum().log() + exponent * math.log(2) for phi, exponent in through])
    total, scale = through[INPUT]
    edges = [
        a * torch.outer(b[0], f[0]) * torch.exp2(b[1] + f[1] - scale) / total.sum()
        for a, f, b in zip(chain, entering, leaving[1:], strict=True)
    ]
    return PathWeights(log_total, [node_shares(phi) for phi, _ in through], edges)


# A vector whose sum is between 1/2 and 1, and the power of two that it is to be multiplied with. Whole
# exponents add up without rounding, so that Φ of a hundred layers is as exact as that of one.
Carried = tuple[Tensor, Tensor]


def _sizes(chain: Sequence[Tensor], feeds: Sequence[Sequence[int]]) -> list[int]:
    """Nodes of the input and of every layer."""
    if not chain or any(a.ndim != 2 for a in chain):
        raise ValueError(f"expected matrices (n_out, n_in), got shapes {[tuple(a.shape) for a in chain]}")
    sizes = [chain[0].shape[1]]
    for number, (a, feed) in enumerate(zip(chain, feeds, strict=True), 1):
        if not feed or not all(INPUT <= k < number for k in feed):
            raise ValueError(f"layer {number} cannot be fed by {list(feed)}: give layers that come before it")
        if any(sizes[k] != a.shape[1] for k in feed):
            fed = ", ".join(f"{sizes[k]} of layer {k}" for k in feed)
            raise ValueError(f"layer {number} takes {a.shape[1]} nodes but is fed {fed}")
        sizes.append(a.shape[0])
    return sizes


def _start(importance: Tensor | None, nodes: int, like: Tensor) -> Tensor:
    if importance is None:
        return like.new_ones(nodes)
    if importance.shape != (nodes,) or bool((importance < 0).any()):
        raise ValueError(
            f"the importance of {nodes} nodes is {nodes} numbers ≥ 0, got shape {tuple(importance.shape)}"
        )
    return importance.detach().to(like)


def _scaled(vector: Tensor, exponent: Tensor | float = 0.0) -> Carried:
    power = torch.frexp(vector.sum()).exponent.to(vector)
    return vector * torch.exp2(-power), power + exponent


def _sum(terms: Sequence[Carried]) -> Carried:
    if len(terms) == 1:
        return terms[0]
    largest = torch.stack([exponent for _, exponent in terms]).max()
    return _scaled(torch.stack([v * torch.exp2(exponent - largest) for v, exponent in terms]).sum(0), largest)

"""How unevenly something non-negative is shared among nodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DEAD = 1e-12  # of the largest share


@dataclass(frozen=True, eq=False)
class NodeShares:
    """Shares p ≥ 0, Σp = 1, of n nodes; all shapes are (...) unless said otherwise.

    Many effective nodes mean little focusing: `effective_nodes` and `focusing` do not belong on one axis.
    """

    shares: Tensor  # p, (..., n)
    effective_nodes: Tensor  # PR = 1/Σp², between 1 and n
    focusing: Tensor  # (n/PR - 1)/(n - 1): 0 for equal shares, 1 for one node
    inverse_participation: Tensor  # Σp²
    entropy_nodes: Tensor  # exp H, H = -Σ p ln p
    gini: Tensor  # Σᵢ (2i - n - 1) p_(i)/n with p ascending: 0 for equal shares, 1 - 1/n for one node
    nodes_for_90: Tensor  # share of the nodes that carry 90 %, largest first
    dead: Tensor  # nodes with less than 1e-12 of the largest share, int64


def node_shares(strength: Tensor) -> NodeShares:
    """Shares of strengths s ≥ 0, p = s/Σs, and measures of how focused they are.

    Args:
        strength: (..., n), dead nodes included. Where nothing or something that is not finite is shared, all
            measures are NaN.

    Raises:
        ValueError: if there is no node, or a strength is negative.
    """
    if strength.ndim == 0 or strength.shape[-1] == 0:
        raise ValueError(f"expected strengths of nodes (..., n), got shape {tuple(strength.shape)}")
    if bool((strength < 0).any()):
        raise ValueError("strengths of nodes must not be negative")
    s = strength.detach().double()
    n = s.shape[-1]
    p = s / s.sum(-1, keepdim=True)  # NaN where nothing is shared
    square = p.square().sum(-1)
    ascending = p.sort(-1).values
    order = 2 * torch.arange(1, n + 1, dtype=p.dtype, device=p.device) - n - 1
    carried = ascending.flip(-1).cumsum(-1)
    known = square.isfinite()
    return NodeShares(
        shares=p,
        effective_nodes=1 / square,
        focusing=(n * square - 1).clamp_min(0) / max(n - 1, 1),
        inverse_participation=square,
        entropy_nodes=torch.special.entr(p).sum(-1).exp(),
        gini=(order * ascending).sum(-1) / n,
        nodes_for_90=torch.where(known, ((carried < 0.9 - 1e-12).sum(-1) + 1) / n, torch.nan),
        dead=(p < DEAD * ascending[..., -1:]).sum(-1),
    )


def effective_nodes_at_initialisation(nodes: int, fan: int) -> float:
    """Expected PR ≈ n/(1 + 2/m) of q = 2 strengths of i.i.d. Gaussian weights, each a sum of m squares.

    Args:
        nodes: n.
        fan: m, the fan-in for in-strengths and the fan-out for out-strengths.
    """
    if nodes < 1 or fan < 1:
        raise ValueError(f"a layer has at least one node and one weight per node, got {nodes} and {fan}")
    return nodes / (1 + 2 / fan)

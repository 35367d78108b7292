"""How strongly the weights of a network are focused on few of its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.dimension.shares import NodeShares, effective_nodes_at_initialisation, node_shares
from observatory.dimension.strengths import Power, in_strengths, node_differences, out_strengths
from observatory.dimension.structure import Structure, WeightLayer

CURVE = 33  # points of the curve of sorted shares
MEASURES = {  # of the shares of nodes in paths, in the weights that come in, and in those that leave
    "path": ("focusing", "effective_nodes", "entropy_nodes", "gini", "nodes_for_90", "dead"),
    "in": ("focusing", "effective_nodes"),
    "out": ("focusing", "effective_nodes"),
}


@dataclass(frozen=True, eq=False)
class WeightFocusing:
    """Focusing in hidden layers, and what keeps that of incoming and of outgoing weights equal."""

    values: dict[str, Tensor]  # by quantity, (layers, ...)
    log_total: Tensor  # ln Φ over all paths from input to output, a scalar; NaN where none is defined
    differences: list[Tensor]  # in- minus out-strength of each node, of each layer; empty where not defined


def weight_focusing(
    structure: Structure,
    numbers: Sequence[int | None],
    active: Sequence[Tensor],
    *,
    q: Power = 2,
    fold_bn: bool = True,
) -> WeightFocusing:
    """Shares of nodes in the paths and in the weights on either side of hidden layers.

    Args:
        structure: of the network.
        numbers: of the hidden layers, counted from 1; None for a place that is no weight layer's, NaN then.
        active: mean share of the probe for which each node is active, (n,) each, for path weights through
            active nodes only; empty for none.
        q: A = |W|^q.
        fold_bn: fold a batch norm into the weights before it.
    """
    strengths = structure.strengths(q=q, fold_bn=fold_bn)
    nan = strengths[0].new_full((), torch.nan)
    total, through = _through_paths(structure, strengths)
    gated = _through_paths(structure, _gated(structure, strengths, numbers, active))[1] if active else None
    rows, differences = [], []
    for number in numbers:
        row, difference = _of_layer(structure, strengths, number, through, gated, nan)
        rows.append(row)
        differences.append(difference)
    values = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return WeightFocusing(values, total, differences)


def lorenz_curve(shares: Tensor, points: int = CURVE) -> Tensor:
    """Share carried by the x n strongest of n nodes at x = 0 ... 1, (..., points) from (..., n)."""
    n = shares.shape[-1]
    carried = shares.sort(-1, descending=True).values.cumsum(-1)
    carried = torch.nn.functional.pad(carried, (1, 0))  # at 0, 1, ... n nodes
    at = torch.linspace(0, n, points, dtype=shares.dtype, device=shares.device)
    low = at.floor().long().clamp_max(n - 1)
    return carried[..., low] + (at - low) * (carried[..., low + 1] - carried[..., low])


def _through_paths(structure: Structure, strengths: list[Tensor]) -> tuple[Tensor, list[NodeShares] | None]:
    """ln Φ, and shares of the nodes of every weight layer; None where paths are not defined."""
    nan = strengths[0].new_full((), torch.nan)
    if not all(bool(torch.isfinite(a).all()) for a in strengths):
        return nan, None
    try:
        paths = structure.paths(strengths)
    except ValueError:  # attention, gates, concatenation: layers are described one by one
        return nan, None
    return paths.log_total[0], paths.nodes[1:]


def _gated(
    structure: Structure, strengths: list[Tensor], numbers: Sequence[int | None], active: Sequence[Tensor]
) -> list[Tensor]:
    """A with the rows of hidden nodes multiplied by how often they are active."""
    found = list(strengths)
    for number, share in zip(numbers, active, strict=True):
        if number is not None:
            nodes = structure.layers[number - 1].nodes
            weight = structure.layers[number - 1].weight
            if len(share) == nodes or (weight.ndim > 2 and len(share) % nodes == 0):
                share = share.view(nodes, -1).mean(1)  # over the positions of a channel
                found[number - 1] = share.to(found[number - 1])[:, None] * found[number - 1]
    return found


def _of_layer(
    structure: Structure,
    strengths: list[Tensor],
    number: int | None,
    through: list[NodeShares] | None,
    gated: list[NodeShares] | None,
    nan: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    row = {f"{side}_{name}": nan for side, names in MEASURES.items() for name in names}
    row |= {
        "nodes": nan,
        "active_path_focusing": nan,
        "product_focusing": nan,
        "imbalance": nan,
        "strength": nan,
    }
    row |= {"in_nodes_at_random": nan, "out_nodes_at_random": nan, "share_curve": nan.expand(CURVE)}
    if number is None:
        return row, nan.new_empty(0)
    layer, follower = structure.layers[number - 1], structure.follower(number)
    row["nodes"] = nan.new_tensor(float(layer.nodes))
    if through is not None:
        row |= _measures("path", through[number - 1])
        row["share_curve"] = lorenz_curve(through[number - 1].shares)
    if gated is not None:
        row["active_path_focusing"] = gated[number - 1].focusing
    entering = in_strengths(strengths[number - 1])
    row |= _measures("in", node_shares(entering))
    row["in_nodes_at_random"] = nan.new_tensor(
        effective_nodes_at_initialisation(layer.nodes, layer.weight[0].numel())
    )
    if follower is None or strengths[follower - 1].shape[1] != layer.nodes:
        return row, nan.new_empty(0)
    after = structure.layers[follower - 1]
    leaving = out_strengths(strengths[follower - 1])
    row |= _measures("out", node_shares(leaving))
    row["product_focusing"] = node_shares(entering * leaving).focusing
    row["out_nodes_at_random"] = nan.new_tensor(
        effective_nodes_at_initialisation(layer.nodes, after.weight.numel() // layer.nodes)
    )
    if not _alone(structure, number, follower):
        return row, nan.new_empty(0)
    difference, size = _difference(layer, after)
    row |= {"imbalance": difference.norm() / size, "strength": size}
    return row, difference


def _measures(side: str, shares: NodeShares) -> dict[str, Tensor]:
    return {f"{side}_{name}": getattr(shares, name).to(shares.shares.dtype) for name in MEASURES[side]}


def _alone(structure: Structure, number: int, follower: int) -> bool:
    """Whether all that leaves a layer enters the other, with no batch norm between: what flow conserves."""
    layer, after = structure.layers[number - 1], structure.layers[follower - 1]
    followers = sum(number in other.sources for other in structure.layers)
    return after.sources == (number,) and followers == 1 and layer.scale is None and after.groups == 1


def _difference(layer: WeightLayer, after: WeightLayer) -> tuple[Tensor, Tensor]:
    """Σ W² + b² - Σ V² of each node between two layers, and ‖Σ W² + b² + Σ V²‖."""
    outgoing = after.weight
    if outgoing.ndim == 2:  # positions of a channel that a linear layer reads
        outgoing = outgoing.unflatten(1, (layer.nodes, -1))
    difference = node_differences(layer.weight, outgoing, layer.bias)
    leaving = outgoing.detach().double().square().transpose(0, 1).flatten(1).sum(1)
    return difference, (difference + 2 * leaving).norm()

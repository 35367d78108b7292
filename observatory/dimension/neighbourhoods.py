"""What a neighbourhood looks like: its principal components, and the classes in it."""

from __future__ import annotations

import torch
from torch import Tensor

from observatory.dimension.neighbours import Neighbours
from observatory.dimension.result import FEWEST, neighbours_of
from observatory.dimension.spectrum import components_for

CENTRES = 256  # points whose neighbourhoods are decomposed
NEIGHBOURS = 50


def local_pca_dimension(
    x: Tensor | Neighbours, *, k: int = NEIGHBOURS, share: float = 0.95, centres: int = CENTRES
) -> Tensor:
    """Principal components for a share of the variance among the k nearest neighbours, mean over points.

    Args:
        x: samples × units, (N, D), or their neighbours.
        k: neighbours.
        share: of the variance.
        centres: points over which the mean is taken, drawn without replacement.

    Returns:
        A scalar, float64; NaN where fewer than k + 1 points are left.

    Raises:
        ValueError: if there are too few samples.
    """
    near = neighbours_of(x, k)
    if near.distances.shape[1] < k:
        return near.distances.new_full((), torch.nan)
    chosen = torch.randperm(len(near), generator=torch.Generator().manual_seed(0))[:centres]
    rows = near.indices[chosen.to(near.indices.device), :k]
    grams = []
    for part in rows.split(max(1, 2**24 // (k * near.points.shape[1]))):
        cloud = near.points[part]  # (centres, k, D)
        cloud = cloud - cloud.mean(1, keepdim=True)
        grams.append(cloud @ cloud.mT)
    spectra = torch.linalg.eigvalsh(torch.cat(grams)).flip(-1).clamp_min(0)
    return components_for(spectra, share).double().mean()


def class_purity(x: Tensor | Neighbours, targets: Tensor, *, k: int = 10) -> Tensor:
    """Share of the k nearest neighbours of a point that are of its class, mean over points.

    Args:
        x: samples × units, (N, D), or their neighbours.
        targets: integer classes, (N,), of all samples.
        k: neighbours.

    Returns:
        A scalar, float64: Σ p_c² for classes of shares p_c that are mixed at random, 1 if they are apart.

    Raises:
        ValueError: if there are too few samples, or not one class for each.
    """
    near = neighbours_of(x, k)
    if targets.shape != (len(near) + near.dropped,) or targets.is_floating_point():
        raise ValueError(
            f"expected one integer class for each of {len(near) + near.dropped} samples, got {targets.dtype} "
            f"of shape {tuple(targets.shape)}"
        )
    if near.distances.shape[1] < k or len(near) < FEWEST:
        return near.distances.new_full((), torch.nan)
    own = targets[near.kept]
    return (own[near.indices[:, :k]] == own[:, None]).double().mean()

"""What is not fluctuation: drifts, random walks and the noise of a finite sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

COSINE_ALARM = 0.95  # |correlation| of a component with half a cosine from which on it is called a drift


def random_walk_fractions(count: int) -> Tensor:
    """Explained fractions 6/(π²k²), k = 1 ... count, of a long random walk in many dimensions: 0.61,
    0.15, 0.068.

    Its components are cosines, although nothing moves in any particular direction.
    (Antognini, Sohl-Dickstein 2018, arXiv:1806.08805.)
    """
    k = torch.arange(1, count + 1, dtype=torch.float64)
    return 6 / (math.pi * k).square()


def cosine_match(projections: Tensor) -> Tensor:
    """|Correlation| of component k (k = 1, 2, ...) with cos(πk(t + ½)/T), k half periods over the window.

    Args:
        projections: θ_i(t), (..., T, k).

    Returns:
        Shape (..., k), between 0 and 1.
    """
    snapshots, count = projections.shape[-2:]
    time = (torch.arange(snapshots, dtype=torch.float64, device=projections.device) + 0.5) / snapshots
    order = torch.arange(1, count + 1, dtype=torch.float64, device=projections.device)
    cosines = torch.cos(math.pi * time[:, None] * order)
    cosines = (cosines - cosines.mean(0)) / (cosines - cosines.mean(0)).norm(dim=0)
    centred = projections.double() - projections.double().mean(-2, keepdim=True)
    return ((centred * cosines).sum(-2) / centred.norm(dim=-2)).abs()


def drifts(projections: Tensor) -> bool:
    """Whether the leading component is a drift: half a cosine over the window."""
    return float(cosine_match(projections[..., :1])[..., 0]) > COSINE_ALARM


@dataclass(frozen=True)
class SamplingBand:
    """Eigenvalues that an isotropic covariance would show in a finite sample."""

    low: Tensor  # σ²(1 - √(P/T_eff))², σ² where P > T_eff leaves only zeros
    high: Tensor  # σ²(1 + √(P/T_eff))²


def sampling_band(variance: Tensor, *, size: int, effective_samples: Tensor | float) -> SamplingBand:
    """The band σ²(1 ± √(P/T_eff))² (Marchenko, Pastur 1967): inside it components cannot be told apart.

    For P > T_eff the lower edge belongs to the T_eff eigenvalues that are not zero.

    Args:
        variance: σ² of each direction, (...).
        size: number of directions P.
        effective_samples: T_eff = T/(2τ).
    """
    ratio = torch.sqrt(size / torch.as_tensor(effective_samples, dtype=torch.float64, device=variance.device))
    return SamplingBand(variance * (1 - ratio).square(), variance * (1 + ratio).square())

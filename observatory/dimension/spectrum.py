"""Linear dimensions: of the covariance of a representation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LinearDimension:
    """Principal components of samples × units."""

    components: Tensor  # how many hold the share asked of the variance, shape (...), int64
    entropy_rank: Tensor  # exp H of the normalised spectrum, shape (...)
    eigenvalues: Tensor  # of the covariance, descending, shape (..., min(N, D))


def participation_ratio(x: Tensor, *, debias: bool = False) -> Tensor:
    """PR = (tr S)²/tr S², S the covariance of the samples: the number of directions that share the variance.

    It exceeds the dimension of a curved manifold: 2d for a flat d-torus, d + 1 for the sphere S^d. Of a
    finite sample 1/PR is too large by about 1/N; `debias` divides unbiased estimates, for Gaussian data, of
    (tr Σ)² and tr Σ². No eigenvalue is computed.

    Args:
        x: samples × units, (..., N, D), N ≥ 3.
        debias: correct for the finite number of samples.

    Returns:
        Float64, shape (...); 0 where all samples are the same.

    Raises:
        ValueError: if x has fewer than two axes or fewer than 3 samples.
    """
    centred = _centred(x)
    n = centred.shape[-2] - 1
    gram = centred @ centred.mT if centred.shape[-2] < centred.shape[-1] else centred.mT @ centred
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1) / n
    square = gram.square().sum((-2, -1)) / n**2
    if debias:
        scale = n / ((n - 1) * (n + 2))
        trace2 = scale * ((n + 1) * trace.square() - 2 * square)
        square = scale * n * (square - trace.square() / n)
        return torch.where(trace > 0, trace2 / square, 0.0)
    return torch.where(trace > 0, trace.square() / square, 0.0)


def linear_dimension(x: Tensor, *, share: float = 0.9) -> LinearDimension:
    """Number of principal components for a share of the variance, and exp of the entropy of the spectrum.

    Args:
        x: samples × units, (..., N, D).
        share: of the variance, 0 < share ≤ 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} of the variance: give 0 < share ≤ 1")
    centred = _centred(x)
    gram = centred @ centred.mT if centred.shape[-2] < centred.shape[-1] else centred.mT @ centred
    values = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0) / (centred.shape[-2] - 1)
    total = values.sum(-1, keepdim=True)
    p = torch.where(total > 0, values / total, 0.0)
    components = (p.cumsum(-1) < share - 1e-12).sum(-1) + 1
    flat = total[..., 0] > 0
    return LinearDimension(
        torch.where(flat, components, 0), torch.where(flat, torch.special.entr(p).sum(-1).exp(), 0.0), values
    )


def _centred(x: Tensor) -> Tensor:
    if x.ndim < 2 or x.shape[-2] < 3:
        raise ValueError(f"expected at least 3 samples × units, got a tensor of shape {tuple(x.shape)}")
    x = x.detach().double()
    return x - x.mean(-2, keepdim=True)

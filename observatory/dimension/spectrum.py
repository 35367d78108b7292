"""Linear dimensions: of the covariance of a representation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LinearDimension:
    """Principal components of samples × units; a representation that is constant has dimension 0."""

    participation_ratio: Tensor  # (tr S)²/tr S², shape (...)
    debiased: Tensor  # the same, corrected for the finite number of samples, shape (...)
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
    return _participation(_gram(x), x.shape[-2] - 1, debias=debias)


def linear_dimension(x: Tensor, *, share: float = 0.9) -> LinearDimension:
    """Participation ratio, number of components for a share of the variance, and exp of the entropy of the
    spectrum.

    Args:
        x: samples × units, (..., N, D), finite.
        share: of the variance, 0 < share ≤ 1.

    Raises:
        ValueError: if x has fewer than two axes or fewer than 3 samples.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} of the variance: give 0 < share ≤ 1")
    gram = _gram(x)
    n = x.shape[-2] - 1
    values = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0) / n
    total = values.sum(-1, keepdim=True)
    p = torch.where(total > 0, values / total, 0.0)
    return LinearDimension(
        participation_ratio=_participation(gram, n, debias=False),
        debiased=_participation(gram, n, debias=True),
        components=components_for(values, share),
        entropy_rank=torch.where(total[..., 0] > 0, torch.special.entr(p).sum(-1).exp(), 0.0),
        eigenvalues=values,
    )


def components_for(eigenvalues: Tensor, share: float) -> Tensor:
    """How many of the eigenvalues (..., n), descending, hold a share of their sum; 0 where that is zero."""
    total = eigenvalues.sum(-1)
    held = eigenvalues.cumsum(-1) / total[..., None]
    return torch.where(total > 0, (held < share - 1e-12).sum(-1) + 1, 0)


def _gram(x: Tensor) -> Tensor:
    """The smaller of X Xᵀ and Xᵀ X of the centred samples, float64: they share all eigenvalues above 0."""
    if x.ndim < 2 or x.shape[-2] < 3:
        raise ValueError(f"expected at least 3 samples × units, got a tensor of shape {tuple(x.shape)}")
    x = x.detach().double()
    x = x - x.mean(-2, keepdim=True)
    return x @ x.mT if x.shape[-2] < x.shape[-1] else x.mT @ x


def _participation(gram: Tensor, n: int, *, debias: bool) -> Tensor:
    """Of N = n + 1 samples."""
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1) / n
    square = gram.square().sum((-2, -1)) / n**2
    upper = trace.square()
    if debias:
        scale = n / ((n - 1) * (n + 2))
        upper, square = (
            scale * ((n + 1) * upper - 2 * square),
            scale * n * (square - upper / n),
        )
    return torch.where(trace == 0, 0.0, upper / square)

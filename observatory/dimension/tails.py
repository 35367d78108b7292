"""Power-law tails of the spectra of weight matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FEWEST = 20  # eigenvalues in the tail below which an exponent means little
FAR = 0.1  # Kolmogorov-Smirnov distance beyond which it means little


@dataclass(frozen=True, eq=False)
class TailFit:
    """A power law ρ(λ) ∝ λ^(-α) for λ ≥ xmin, of the eigenvalues of one matrix."""

    alpha: float
    xmin: float  # of the candidates, the eigenvalues, the one with the smallest distance
    distance: float  # Kolmogorov-Smirnov, between the tail and the power law
    tail: int  # eigenvalues in the tail

    @property
    def meaningful(self) -> bool:
        """Whether the tail is long enough and follows the power law."""
        return self.tail >= FEWEST and self.distance <= FAR


@dataclass(frozen=True, eq=False)
class WeightSpectrum:
    """The eigenvalues λ of WᵀW, not normalised, and what is made of them."""

    eigenvalues: Tensor  # descending, (min(n_out, n_in),), float64
    tail: TailFit
    log_norm: float  # log10 Σλ, of the squared Frobenius norm
    spectral_norm: float  # λ_max
    stable_rank: float  # Σλ/λ_max
    weighted_alpha: float  # α log10 λ_max
    entropy: float  # -Σ p ln p/ln(rank), p = λ/Σλ
    edge: float  # upper Marchenko-Pastur edge σ²(√n_out + √n_in)² at the variance σ² of the entries
    beyond_edge: int  # eigenvalues above it


def weight_spectrum(
    weight: Tensor, *, convolution: Literal["matrix", "positions"] = "matrix"
) -> WeightSpectrum | list[WeightSpectrum]:
    """Spectrum of a weight matrix; of a kernel, of one matrix or of one per kernel position.

    Martin, Mahoney 2021 (JMLR 22, arXiv:1810.01075).

    Args:
        weight: (n_out, n_in, ...).
        convolution: "matrix" takes a kernel as n_out × (n_in · k · k); "positions" gives a list, one spectrum
            for each of its k · k matrices n_out × n_in.

    Raises:
        ValueError: if it is no matrix or kernel, or not finite.
    """
    if weight.ndim < 2:
        raise ValueError(f"expected a weight (outputs, inputs, ...), got shape {tuple(weight.shape)}")
    if not bool(torch.isfinite(weight).all()):  # LAPACK may crash on NaN
        raise ValueError("the weight is not finite")
    w = weight.detach().double()
    if convolution == "positions" and w.ndim > 2:
        return [_spectrum(matrix) for matrix in w.flatten(2).unbind(2)]
    if convolution not in ("matrix", "positions"):
        raise ValueError(f"convolution must be 'matrix' or 'positions', got {convolution!r}")
    return _spectrum(w.flatten(1))


def _spectrum(matrix: Tensor) -> WeightSpectrum:
    values = torch.linalg.svdvals(matrix).square()
    total, largest = float(values.sum()), float(values[0])
    rank = int((values > values[0] * max(matrix.shape) * torch.finfo(values.dtype).eps).sum())
    fit = fit_tail(values[:rank])
    entropy = float(torch.special.entr(values / total).sum()) / math.log(rank) if rank > 1 else 0.0
    edge = float(matrix.var(correction=0)) * sum(math.sqrt(n) for n in matrix.shape) ** 2
    return WeightSpectrum(
        eigenvalues=values,
        tail=fit,
        log_norm=math.log10(total) if total > 0 else -math.inf,
        spectral_norm=largest,
        stable_rank=total / largest if largest > 0 else 0.0,
        weighted_alpha=fit.alpha * math.log10(largest) if largest > 0 else math.nan,
        entropy=entropy,
        edge=edge,
        beyond_edge=int((values > edge).sum()),
    )


def fit_tail(values: Tensor) -> TailFit:
    """α = 1 + n/Σ ln(λ/xmin) over the n values λ ≥ xmin, for the xmin of least Kolmogorov-Smirnov distance.

    D = max_j |j/n - 1 + (λ_j/xmin)^(1-α)|, j = 0 ... n - 1 ascending. All candidates are tried together, in
    memory n². (Clauset, Shalizi, Newman 2009, SIAM Rev. 51, 661.)

    Args:
        values: positive, (n,); NaN where fewer than two distinct ones are given.
    """
    ordered = values.double()[values > 0].sort().values
    n = len(ordered)
    if n < 2 or bool(ordered[0] == ordered[-1]):
        return TailFit(math.nan, math.nan, math.nan, n)
    logs = ordered.log()
    size = torch.arange(n, 1, -1, dtype=logs.dtype, device=logs.device)  # of each tail
    alpha = 1 + size / (logs.flip(0).cumsum(0).flip(0)[:-1] - size * logs[:-1])
    order = torch.arange(n, device=logs.device)
    place = order - order[:-1, None]  # j of each value in each tail; negative outside of it
    law = 1 - torch.exp((logs - logs[:-1, None]) * (1 - alpha[:, None]))
    misfit = torch.where(place >= 0, (law - place / size[:, None]).abs(), 0.0).amax(1)
    misfit = torch.where(alpha.isfinite() & (alpha > 1), misfit, torch.inf)
    best = int(misfit.argmin())
    return TailFit(float(alpha[best]), float(ordered[best]), float(misfit[best]), n - best)

"""Collective variables: a kernel matrix in a few numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = -100  # the class that `cross_entropy` ignores
ASYMMETRY = 1e-4  # of the largest entry; float32 Grams are symmetric to 1e-6


@dataclass(frozen=True)
class KernelVariables:
    """Collective variables of a kernel matrix K with eigenvalues λ₁ ≥ ... ≥ λₙ; each of shape (...)."""

    trace: Tensor  # Tr K = Σλ
    mean_trace: Tensor  # Tr K / n
    entropy: Tensor  # S = -Σ q ln q, q = λ/Σλ, in nats, between 0 and ln n
    normalised_entropy: Tensor  # S / ln n
    effective_rank: Tensor  # exp S (Roy, Vetterli 2007)
    participation_ratio: Tensor  # (Tr K)² / ‖K‖²_F
    largest_eigenvalue: Tensor  # λ₁
    largest_share: Tensor  # λ₁ / Tr K
    condition_number: Tensor  # λ₁ / max(λₙ, ε λ₁), ε = n · machine epsilon of the matrix's dtype
    numerical_rank: Tensor  # number of λ > ε λ₁, int64
    centred_entropy: Tensor  # entropy of HKH, H = I - 11ᵀ/n: without what all examples share
    cosine_entropy: Tensor  # entropy of K_ij / √(K_ii K_jj): directions of the gradients alone
    self_entropy: Tensor  # entropy of √K_ii / Σ √K_jj: magnitudes of the gradients alone
    eigenvalues: Tensor  # (..., n), descending, round-off below 0 set to 0
    alignment: Tensor | None = None  # ⟨K, YYᵀ⟩ / (‖K‖ ‖YYᵀ‖)
    centred_alignment: Tensor | None = None  # the same of HKH and HYYᵀH (CKA)
    distance: Tensor | None = None  # 1 - ⟨K, K'⟩ / (‖K‖ ‖K'‖), K' the reference
    velocity: Tensor | None = (
        None  # the same to the previous kernel, per step if the number of steps is given
    )


def collective_variables(
    matrix: Tensor,
    *,
    targets: Tensor | None = None,
    reference: Tensor | None = None,
    previous: Tensor | tuple[Tensor, float] | None = None,
) -> KernelVariables:
    """Collective variables of a kernel matrix (Tovey et al. 2023, arXiv:2305.00995; 2024, arXiv:2410.07451).

    Eigenvalues are taken in float64. A matrix that is not finite gives NaN in every field.

    Args:
        matrix: (..., n, n), symmetric and positive semi-definite.
        targets: (n, ...) integer classes, of every site taken one-hot (-100, which marks padding, is no
            class), or (n, k) values: gives `alignment`, `centred_alignment`.
        reference: (..., n, n), the kernel at initialisation for example: gives `distance` (Fort et al. 2020,
            arXiv:2010.15110).
        previous: the kernel of the look before, or (kernel, number of steps since): gives `velocity`.

    Raises:
        ValueError: if the matrix is not square, not symmetric, has an eigenvalue below -1e-4 λ₁, or is a
            kernel of shape (N, C, N, C); or if an argument's shape does not fit.
    """
    _check(matrix)
    n = matrix.shape[-1]
    kernel = matrix.detach().double()
    finite = torch.isfinite(kernel).all(-1).all(-1)
    kernel = torch.where(finite[..., None, None], kernel, torch.eye(n).to(kernel))  # LAPACK may crash on NaN

    def masked(value: Tensor) -> Tensor:
        return torch.where(finite.reshape(finite.shape + (1,) * (value.ndim - finite.ndim)), value, torch.nan)

    eigenvalues = torch.linalg.eigvalsh(kernel).flip(-1)
    _check_positive(eigenvalues)
    eigenvalues = eigenvalues.clamp_min(0)
    trace, largest = eigenvalues.sum(-1), eigenvalues[..., 0]
    entropy = shannon_entropy(eigenvalues)
    epsilon = n * torch.finfo(matrix.dtype if matrix.is_floating_point() else torch.float64).eps
    magnitudes = kernel.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    inverse = torch.where(magnitudes > 0, 1 / magnitudes.clamp_min(torch.finfo(torch.float64).tiny), 0)
    cosine = kernel * inverse[..., :, None] * inverse[..., None, :]
    aligned = None if targets is None else _outer(targets, n).to(kernel)
    moved, steps = previous if isinstance(previous, tuple) else (previous, 1.0)
    return KernelVariables(
        trace=masked(trace),
        mean_trace=masked(trace / n),
        entropy=masked(entropy),
        normalised_entropy=masked(entropy / math.log(n) if n > 1 else torch.zeros_like(entropy)),
        effective_rank=masked(entropy.exp()),
        participation_ratio=masked(trace.square() / kernel.square().sum((-2, -1))),
        largest_eigenvalue=masked(largest),
        largest_share=masked(largest / trace),
        condition_number=masked(largest / torch.maximum(eigenvalues[..., -1], epsilon * largest)),
        numerical_rank=torch.where(finite, (eigenvalues > epsilon * largest[..., None]).sum(-1), 0),
        centred_entropy=masked(shannon_entropy(torch.linalg.eigvalsh(centred(kernel)).clamp_min(0))),
        cosine_entropy=masked(shannon_entropy(torch.linalg.eigvalsh(cosine).clamp_min(0))),
        self_entropy=masked(shannon_entropy(magnitudes)),
        eigenvalues=masked(eigenvalues),
        alignment=None if aligned is None else masked(_cosine(kernel, aligned)),
        centred_alignment=None if aligned is None else masked(_cosine(centred(kernel), centred(aligned))),
        distance=None if reference is None else masked(kernel_distance(kernel, reference)),
        velocity=None if moved is None else masked(kernel_distance(kernel, moved) / steps),
    )


def shannon_entropy(weights: Tensor) -> Tensor:
    """-Σ q ln q with q = w/Σw over the last axis, in nats; 0 ln 0 = 0. NaN where all weights vanish.

    Args:
        weights: (..., n), not negative.
    """
    q = weights / weights.sum(-1, keepdim=True)
    return torch.special.entr(q).sum(-1)


def centred(kernel: Tensor) -> Tensor:
    """HKH with H = I - 11ᵀ/n, for kernels (..., n, n)."""
    rows = kernel - kernel.mean(-2, keepdim=True)
    return rows - rows.mean(-1, keepdim=True)


def kernel_distance(one: Tensor, other: Tensor) -> Tensor:
    """d = 1 - ⟨K, K'⟩_F / (‖K‖_F ‖K'‖_F), between 0 and 1 for kernels (Fort et al. 2020, arXiv:2010.15110).

    Args:
        one, other: (..., n, n).
    """
    if one.shape[-2:] != other.shape[-2:]:
        raise ValueError(f"kernels of shapes {tuple(one.shape)} and {tuple(other.shape)} cannot be compared")
    return 1 - _cosine(one.double(), other.to(one.device).double())


def to_matrix(kernel: Tensor) -> Tensor:
    """The (N·C, M·C) matrix of a full kernel (N, C, M, C): row i·C + c, example-major.

    Raises:
        ValueError: if the kernel has not four axes.
    """
    if kernel.ndim != 4:
        raise ValueError(f"a full kernel has shape (N, C, M, C), got {tuple(kernel.shape)}")
    n, c, m, d = kernel.shape
    return kernel.reshape(n * c, m * d)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    norms = torch.linalg.matrix_norm(one) * torch.linalg.matrix_norm(other)
    return (one * other).sum((-2, -1)) / norms


def _outer(targets: Tensor, n: int) -> Tensor:
    """YYᵀ; of classes at several sites (n, T), one-hot, it counts the sites at which two rows agree."""
    if len(targets) != n:
        raise ValueError(
            f"the kernel has {n} rows and there are {len(targets)} targets; "
            "alignment needs one target per row, as a trace-contracted kernel has"
        )
    y = targets.reshape(n, -1)
    if targets.is_floating_point():
        return y.double() @ y.double().T
    padding = (y == PADDING).double()
    return y.shape[1] - torch.cdist(y.double(), y.double(), p=0) - padding @ padding.T


def _check(matrix: Tensor) -> None:
    shape = tuple(matrix.shape)
    if matrix.ndim == 4 and shape[:2] == shape[2:] and shape[2] != shape[3]:
        raise ValueError(
            f"a kernel of shape (N, C, N, C) = {shape} must be made a matrix first: to_matrix(kernel)"
        )
    if matrix.ndim < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise ValueError(
            f"a kernel matrix has shape (..., n, n), got {shape}; "
            "a full kernel (N, C, N, C) is made one by to_matrix(kernel)"
        )
    if matrix.ndim == 4 and shape[:2] == shape[2:]:
        raise ValueError(
            f"shape {shape} may be a full kernel (N, C, N, C) or a batch of matrices: "
            "use to_matrix(kernel), or flatten the batch to (batch, n, n)"
        )
    asymmetry = (matrix - matrix.mT).abs().nan_to_num(0.0, 0.0)
    if bool((asymmetry.amax((-2, -1)) > ASYMMETRY * matrix.abs().nan_to_num(0.0, 0.0).amax((-2, -1))).any()):
        raise ValueError(
            f"the matrix is not symmetric: entries differ from the transpose's by {asymmetry.max():.3g}; "
            "a cross kernel K(x, x') has no collective variables, a full kernel needs to_matrix(kernel)"
        )


def _check_positive(eigenvalues: Tensor) -> None:
    """Eigenvalues descending; round-off may make small ones negative, but not by more than a part in 10⁴."""
    lowest, largest = eigenvalues[..., -1], eigenvalues[..., 0]
    if bool((lowest < -1e-4 * largest.abs()).any()):
        raise ValueError(
            f"the matrix is not positive semi-definite: its eigenvalues reach from {lowest.min():.3g} "
            f"to {largest.max():.3g}; a kernel's are not negative"
        )

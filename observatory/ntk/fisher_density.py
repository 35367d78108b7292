"""Fisher information of any density from samples of it: energy models, magnets, flows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class DensityFisher:
    """Two estimates of Tr F, equal in expectation up to 1/n; 0-dimensional float64 tensors."""

    mean_square: Tensor  # (1/n) Σ ‖s_i‖², s = ∂ ln p(x_i)/∂θ: needs the normalisation of p
    mean_square_error: Tensor  # standard error for independent samples
    variance: Tensor  # Σ ‖s_i - s̄‖²/(n - 1): also right where ln p lacks a constant ln Z(θ)
    variance_error: Tensor  # standard error for independent samples
    mean_score: Tensor  # ‖s̄‖, zero within its error if the samples are of this density
    samples: int  # n


def fisher_trace_of_density(
    log_prob: Callable[[Any, Any], Tensor],
    params: Tensor | Mapping[str, Tensor],
    samples: Any,
    *,
    chunk_size: int | None = None,
) -> DensityFisher:
    """Tr F = E_p ‖∂ ln p(x|θ)/∂θ‖² from samples x_i of p(x|θ).

    For p ∝ exp(-βE) this is Var E, whose divergence (or peak, for finite systems) marks a second-order phase
    transition.

    Args:
        log_prob: from parameters and one sample to ln p, a scalar; it may lack ln Z(θ), then only `variance`
            and `variance_error` mean something.
        params: θ, a tensor or a dictionary of tensors.
        samples: n ≥ 2 along the first axis of a tensor or nested tensors.
        chunk_size: samples at once; default all.

    Raises:
        ValueError: if there are fewer than two samples, or a score is not finite.
    """
    leaves = [leaf for leaf in tree_leaves(samples) if isinstance(leaf, Tensor)]
    n = len(leaves[0]) if leaves and leaves[0].ndim else 0
    if n < 2:
        raise ValueError(f"at least two samples along a first axis are needed, got {n}")
    theta = params if isinstance(params, Tensor) else dict(params)
    score = torch.func.vmap(torch.func.grad(log_prob), in_dims=(None, 0), chunk_size=chunk_size)
    rows = torch.cat([s.reshape(n, -1).double() for s in tree_leaves(score(theta, samples))], 1)
    if not bool(rows.isfinite().all()):
        raise ValueError("a score is not finite: are all samples inside the support of the density?")
    mean = rows.mean(0)
    squares, deviations = rows.square().sum(1), (rows - mean).square().sum(1)
    return DensityFisher(
        mean_square=squares.mean(),
        mean_square_error=squares.std() / n**0.5,
        variance=deviations.sum() / (n - 1),
        variance_error=deviations.std() / n**0.5,
        mean_score=mean.norm(),
        samples=n,
    )

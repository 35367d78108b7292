"""Dimension from ratios of neighbour distances: TwoNN and Gride."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from observatory.dimension.halves import inverse_dimensions_in_halves
from observatory.dimension.neighbours import Neighbours, ratio_or_nan
from observatory.dimension.result import FEWEST, Dimension, neighbours_of, undefined
from observatory.dimension.selection import ascending

Method = Literal["ols", "ml", "censored"]
TWO_NN_DEPTH = 16  # neighbours among which the two nearest of nearly every half are found


def two_nn(x: Tensor | Neighbours, *, method: Method = "ols", fraction: float = 0.9) -> Dimension:
    """Dimension from the ratio μ = r₂/r₁ of the distances to the two nearest neighbours, ln μ ~ Exp(d).

    Facco, d'Errico, Rodriguez, Laio 2017 (Sci. Rep. 7, 12140). See `rate_of` for the methods.

    Args:
        x: samples × units, (N, D), or their neighbours.
        method: "ols", "ml" or "censored".
        fraction: share of the smallest ratios that "ols" and "censored" use.

    Returns:
        A scalar with the standard error of random halves ("ols") or of the likelihood.

    Raises:
        ValueError: if x is not samples × units, or the method or the fraction is none.
    """
    _check(method, fraction)
    near = neighbours_of(x, 2, TWO_NN_DEPTH)
    if near.distances.shape[1] < 2:
        return undefined(near, (), 0)
    valid = (near.ratios > 0).sum()
    if valid < FEWEST:
        return undefined(near, (), valid)
    value = _rate(near.ratios, valid[None], method, fraction)
    error = value / (valid * (1.0 if method == "ml" else fraction) - 2).sqrt()
    scatter = partial(_scatter, near, fraction)
    first, second = near.scales[:2]
    return Dimension(value, scatter if method == "ols" else error, valid, first, second, near.dropped)


def _scatter(near: Neighbours, fraction: float) -> Tensor:
    """Standard error of the regression, from random halves."""
    halves = ratio_or_nan(inverse_dimensions_in_halves(near, 2, TWO_NN_DEPTH))
    return rate_of(halves, method="ols", fraction=fraction).std()


def _check(method: str, fraction: float) -> None:
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if not 0 < fraction <= 1 or (fraction == 1 and method == "ols"):
        raise ValueError(
            f"fraction={fraction} of the ratios cannot be used: 0 < fraction < 1, or 1 if censored"
        )


def log_ratios(distances: Tensor, n1: int, n2: int) -> Tensor:
    """ln(r_n2/r_n1) of distances (..., N, k), shape (..., N); NaN for ties and distances of zero."""
    return ratio_or_nan(distances[..., n2 - 1].log() - distances[..., n1 - 1].log())


def rate_of(log_ratio: Tensor, *, method: Method = "ols", fraction: float = 0.9) -> Tensor:
    """Rate d of exponentially distributed ln μ, shape (...) from (..., N), NaN entries left out.

    - ols: slope through the origin of -ln(1 - i/N) on the ⌊fraction N⌋ smallest ln μ_(i).
    - ml: (N - 1)/Σ ln μ, unbiased, of variance d²/(N - 2) for independent points.
    - censored: (n - 1)/(Σ_{i≤n} ln μ_(i) + (N - n) ln μ_(n)), n = ⌊fraction N⌋.
    """
    n = log_ratio.isfinite().sum(-1, keepdim=True)
    return _rate(log_ratio if method == "ml" else ascending(log_ratio), n, method, fraction)


def _rate(ordered: Tensor, n: Tensor, method: Method, fraction: float) -> Tensor:
    """The same of ascending ln μ, NaN last, and their numbers (..., 1); "ml" needs no order."""
    if method == "ml":
        return (n[..., 0] - 1) / ordered.nansum(-1)
    order = torch.arange(1, ordered.shape[-1] + 1, device=ordered.device)
    last = (fraction * n + 1e-9).floor().long()  # 0.9 · 30 shall be 27
    below = torch.where(order <= last, ordered, 0.0)
    if method == "censored":
        top = ordered.gather(-1, (last - 1).clamp_min(0))
        return ((last - 1) / (below.sum(-1, keepdim=True) + (n - last) * top))[..., 0]
    height = (order / n.to(ordered)).clamp_max_(1 - 1e-12).neg_().log1p_()
    return -torch.linalg.vecdot(below, height) / torch.linalg.vecdot(below, below)


def gride(
    x: Tensor | Neighbours,
    *,
    n1: int | Sequence[int] = 1,
    n2: int | Sequence[int] | None = None,
    outlier_cut: bool = True,
) -> Dimension:
    """Dimension from the ratio of the distances to the n₁-th and n₂-th neighbour, by maximum likelihood.

    The ratio has the density d (μᵈ - 1)^(n₂-n₁-1) μ^(-(n₂-1)d-1)/B(n₂-n₁, n₁); n₁ = 1, 2, 4, ... with
    n₂ = 2n₁ gives dimension against scale. (Denti, Doimo, Laio, Mira 2022, Sci. Rep. 12, 20005.)

    Args:
        x: samples × units, (N, D), or their neighbours.
        n1: rank of the nearer neighbour, or several.
        n2: rank of the farther neighbour; default 2 n₁.
        outlier_cut: leave out ratios above q50 + 20 (q95 - q50), the quantiles of μ.

    Returns:
        Of the shape of `n1`, with the standard error of the observed information.

    Raises:
        ValueError: if not 1 ≤ n₁ < n₂ < N.
    """
    several = not isinstance(n1, int)
    first = list(n1) if isinstance(n1, Sequence) else [n1]
    second = [2 * n for n in first] if n2 is None else list(n2) if isinstance(n2, Sequence) else [n2]
    if len(first) != len(second) or not all(1 <= a < b for a, b in zip(first, second, strict=True)):
        raise ValueError(f"ranks must satisfy 1 ≤ n1 < n2, got n1={n1}, n2={n2}")
    near = neighbours_of(x, max(second), max(second))
    shape = (len(first),) if several else ()
    if near.distances.shape[1] < max(second):
        return undefined(near, shape, 0)
    ranks = torch.tensor([first, second], device=near.distances.device)
    used, place = ranks.unique(return_inverse=True)
    logarithms = near.logarithms.index_select(1, used - 1).T.contiguous()[place]  # (2, scales, N)
    ratio = ratio_or_nan(logarithms[1] - logarithms[0])
    ratio = without_outliers(ratio) if outlier_cut else ratio
    valid = ratio.shape[-1] - ratio.isnan().sum(-1)
    if valid.min() < FEWEST:
        return undefined(near, shape, valid if several else valid[0])
    value, error = gride_of(ratio, ranks[0], ranks[1])
    scales = near.scales[ranks - 1]
    found = (value, error, valid, scales[0], scales[1])
    value, error, valid, first_scale, second_scale = found if several else (t[0] for t in found)
    return Dimension(value, error, valid, first_scale, second_scale, near.dropped)


def without_outliers(log_ratio: Tensor) -> Tensor:
    """NaN instead of ratios μ ≥ q50 + 20 (q95 - q50), quantiles over the last axis."""
    ordered = ascending(log_ratio)  # NaN last
    q50, q95 = _quantiles_of_exp(ordered, (0.5, 0.95)).split(1, -1)
    return torch.where(log_ratio < (q50 + 20 * (q95 - q50)).log(), log_ratio, torch.nan)


def _quantiles_of_exp(ordered: Tensor, q: Sequence[float]) -> Tensor:
    """Linear quantiles (..., q) of e^x over the last axis; x ascending, NaN left out."""
    last = (ordered.shape[-1] - ordered.isnan().sum(-1, keepdim=True) - 1).clamp_min(0)
    at = last * torch.tensor(q, dtype=ordered.dtype, device=ordered.device)
    below = at.floor()
    low, high = ordered.gather(-1, below.long()).exp(), ordered.gather(-1, at.ceil().long()).exp()
    return low + (high - low) * (at - below)


def gride_of(log_ratio: Tensor, n1: Tensor | int, n2: Tensor | int) -> tuple[Tensor, Tensor]:
    """Maximum likelihood d and its standard error, each (...), from ln μ (..., N) with NaN left out.

    The score (N-1)/d + (n₂-n₁-1) Σ ln μ/(1 - μ^-d) - (n₂-1) Σ ln μ is convex and falls with d: Newton's steps
    rise to its root from anywhere below. Its first term makes n₁ = 1, n₂ = 2 equal to the unbiased TwoNN.
    """
    unknown = log_ratio.isnan()
    without = unknown.sum(-1).double()
    n = log_ratio.shape[-1] - without
    log_ratio = log_ratio.masked_fill(unknown, NEGLIGIBLE)
    total = log_ratio.sum(-1)
    n1, n2 = (torch.as_tensor(k, device=log_ratio.device).double() for k in (n1, n2))
    inner = n2 - n1 - 1

    def score(d: Tensor) -> tuple[Tensor, Tensor]:
        """The score, and the sum in minus its derivative, Σ [ln μ/(2 sinh(½ d ln μ))]².

        With g = ln μ/(μ^-d - 1) they are sums of -g and g (g + ln μ). A negligible ln μ has g = -1/d.
        """
        grown = log_ratio / (-d[..., None] * log_ratio).expm1_()
        curved = torch.linalg.vecdot(grown, grown) + torch.linalg.vecdot(grown, log_ratio)
        logarithms = -grown.sum(-1) - without / d
        return (n - 1) / d + inner * logarithms - (n2 - 1) * total, curved - without / d.square()

    low = (n - 1) / ((n2 - 1) * total)  # the score is positive here, since the sum inside is
    d = torch.maximum((torch.digamma(n2) - torch.digamma(n1)) * n / total, low)  # ⟨ln μ⟩ = (ψ(n₂) - ψ(n₁))/d
    for _ in range(_STEPS):
        value, curved = score(d)
        nearer = torch.maximum(d + value / ((n - 1) / d.square() + inner * curved), low)
        done = bool(((nearer - d).abs() <= CLOSE_TO_ROOT * d).all())
        d = nearer
        if done:
            break
    return d, (n / d.square() + inner * curved).rsqrt()


NEGLIGIBLE = 1e-30  # a ln μ that adds nothing to a sum
CLOSE_TO_ROOT = 3e-7  # relative step of Newton's method after which the error is its square
_STEPS = 24  # from `low`, at worst 64 times too small, six double d and six converge quadratically

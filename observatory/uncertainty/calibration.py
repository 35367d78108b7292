"""The scale α of the predictive variance σ² = α² s², from residuals of rows that were not trained on."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Method = Literal["nll", "absolute", "median", "crps", "loo"]
METHODS: tuple[Method, ...] = ("nll", "absolute", "median", "crps")
MEDIAN = 0.6744897501960817  # Φ⁻¹(3/4), the median of |z|
BISECTIONS = 100  # of a bracket in ln α: more than float64 resolves


def scale(residuals: Tensor, raw: Tensor, method: Method = "nll") -> Tensor:
    """α from validation residuals r = y - ŷ and raw variances s².

    nll:      α² = mean r²/s², the exact minimiser of the Gaussian negative log-likelihood
    absolute: α = √(π/2) mean |r|/s
    median:   α = median(|r|/s)/Φ⁻¹(3/4)
    crps:     root of Σ s [2φ(r/(αs)) - 1/√π], the minimiser of the continuous ranked probability score
    loo:      α² = mean r²/(h(1 - h)) of training rows with leverages h = s²: exact for a ridge head with
              the features given, optimistic for features that were trained on the same rows

    Under Gaussian errors all agree; α_median < α_nll tells heavy tails.

    Args:
        residuals: (n, O), unit of the target.
        raw: s², (n,), pure numbers.
        method: which.

    Returns:
        α, (O,) float64, unit of the target.

    Raises:
        ValueError: if there are no rows, a residual is NaN or infinite, or all of an output are zero.
    """
    r, s2 = checked(residuals, raw)
    ratio = r.abs() / s2.sqrt()[:, None]
    if method == "nll":
        return ratio.square().mean(0).sqrt()
    if method == "absolute":
        return math.sqrt(math.pi / 2) * ratio.mean(0)
    if method == "median":  # interpolated: torch.median takes the lower of two
        return _positive(ratio.quantile(0.5, dim=0) / MEDIAN, "more than half of the residuals are zero")
    if method == "crps":
        return _crps_root(r.abs(), s2.sqrt()[:, None], ratio)
    if method == "loo":
        return (r.square() / (s2 * (1 - s2))[:, None]).mean(0).sqrt()
    raise ValueError(f"method must be one of {', '.join((*METHODS, 'loo'))}, got {method!r}")


def checked(residuals: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """(n, O) residuals and (n,) raw variances in float64.

    Raises:
        ValueError: as `scale`.
    """
    r, s2 = residuals.double(), raw.double()
    if r.ndim != 2 or s2.shape != r.shape[:1] or len(r) == 0:
        raise ValueError(
            f"calibration needs residuals (n, O) and raw variances (n,) of at least one row, got "
            f"{tuple(r.shape)} and {tuple(s2.shape)}"
        )
    if not torch.isfinite(r).all():
        raise ValueError(f"{int((~torch.isfinite(r)).sum())} residuals are NaN or infinite")
    if not bool((r != 0).any(0).all()):
        raise ValueError("all residuals of an output are zero: there is no error to calibrate against")
    if not bool((s2 > 0).all()):
        raise ValueError(
            f"{int((s2 <= 0).sum())} rows have no raw variance (features all zero and no bias): they cannot "
            "be calibrated; add a bias to the last layer"
        )
    return r, s2


def _positive(alpha: Tensor, reason: str) -> Tensor:
    if not bool((alpha > 0).all()):
        raise ValueError(f"{reason}; use another method")
    return alpha


def _crps_root(r: Tensor, s: Tensor, ratio: Tensor) -> Tensor:
    """Σ s [2φ(r/(αs)) - 1/√π] grows with α: bisection on ln α. No root above the largest |r|/(0.83 s)."""
    high = ratio.amax(0).log() + 1.0  # φ(z) > 1/(2√π) for all |z| < √(ln 2) = 0.83
    low = high - 80.0

    def too_wide(log_alpha: Tensor) -> Tensor:
        z = r / (log_alpha.exp() * s)
        density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
        return (s * (2 * density - 1 / math.sqrt(math.pi))).sum(0) > 0

    if bool(too_wide(low).any()):
        raise ValueError(
            "most residuals of an output are zero: the score falls without end; use another method"
        )
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = too_wide(middle)
        high, low = torch.where(above, middle, high), torch.where(above, low, middle)
    return ((low + high) / 2).exp()


def joint_covariance(residuals: Tensor, raw: Tensor) -> Tensor:
    """Σ̂ = (1/n) Σ r rᵀ/s², (O, O): the maximum-likelihood estimate for Cov[y | x] = s²(x) Σ."""
    r, s2 = checked(residuals, raw)
    return (r / s2[:, None]).mT @ r / len(r)


def additive_noise(residuals: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ_n of σ² = α² s² + σ_n² by maximum likelihood, each (O,) float64.

    With v(ρ) = ρ s²/⟨s²⟩ + 1 - ρ the scale τ² = mean r²/v is a closed form, which leaves a search over the
    share 0 ≤ ρ ≤ 1: its ends are the models without σ_n and without α.
    """
    r, s2 = checked(residuals, raw)
    r2, relative = r.square(), (s2 / s2.mean())[:, None]

    def profile(share: Tensor) -> Tensor:  # (O, k) shares to their negative log-likelihoods
        v = share[None] * relative[..., None] + (1 - share[None])  # (n, O, k)
        return (r2[..., None] / v).mean(0).log() + v.log().mean(0)

    one = r.new_ones(r.shape[1], 1)
    x = torch.linspace(-25, 25, 101, dtype=r.dtype, device=r.device)
    share = torch.cat([0 * one, torch.sigmoid(x) * one, one], 1)
    for _ in range(7):  # each round narrows the bracket of the best share by 10
        best = profile(share).argmin(1, keepdim=True)
        low = share.gather(1, (best - 1).clamp_min(0))
        high = share.gather(1, (best + 1).clamp_max(share.shape[1] - 1))
        share = low + (high - low) * torch.linspace(0, 1, 21, dtype=r.dtype, device=r.device)
    best_share = share.gather(1, profile(share).argmin(1, keepdim=True))
    v = (best_share[None] * relative[..., None] + 1 - best_share[None])[..., 0]
    tau2 = (r2 / v).mean(0)
    rho = best_share[:, 0]
    return (tau2 * rho / s2.mean()).sqrt(), (tau2 * (1 - rho)).sqrt()

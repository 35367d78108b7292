"""How good are predicted standard deviations? Scores and calibration of Gaussian predictions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from observatory.numerics.statistics import bootstrap
from observatory.uncertainty.ranking import spearman, spearman_ceiling

LEVELS = (0.5, 0.6826894921370859, 0.9, 0.95)  # the second is ±1σ


def gaussian_nll(residuals: Tensor, std: Tensor) -> Tensor:
    """½[ln(2πσ²) + r²/σ²] of each row (...), nat."""
    return 0.5 * (math.log(2 * math.pi) + 2 * std.log() + (residuals / std).square())


def gaussian_crps(residuals: Tensor, std: Tensor) -> Tensor:
    """σ[z(2Φ(z) - 1) + 2φ(z) - 1/√π], z = r/σ, of each row (...), unit of the target.

    The continuous ranked probability score ∫ [F(t) - 1{t ≥ y}]² dt of a Gaussian. (Gneiting & Raftery 2007,
    doi:10.1198/016214506000001437.)
    """
    z = residuals / std
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    return std * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def normal_quantile(p: Tensor) -> Tensor:
    """Φ⁻¹(p)."""
    return torch.special.ndtri(p)


def interval_calibration(residuals: Tensor, std: Tensor, bins: int = 100) -> tuple[Tensor, Tensor]:
    """Nominal p_j, evenly spaced from 0 to 1, and the share of rows within ±Φ⁻¹(½ + p_j/2)σ, each (bins,)."""
    p = torch.linspace(0, 1, bins, dtype=torch.float64, device=residuals.device)
    reach = normal_quantile(0.5 + p / 2)
    z = (residuals / std).abs().double().sort().values
    return p, torch.searchsorted(z, reach, right=True).double() / len(z)


def quantile_calibration(residuals: Tensor, std: Tensor, bins: int = 100) -> tuple[Tensor, Tensor]:
    """Nominal p_j and the share of rows with r ≤ σΦ⁻¹(p_j), each (bins,)."""
    p = torch.linspace(0, 1, bins, dtype=torch.float64, device=residuals.device)
    z = (residuals / std).double().sort().values
    return p, torch.searchsorted(z, normal_quantile(p), right=True).double() / len(z)


def _quantile_levels(like: Tensor, count: int = 99) -> Tensor:
    return torch.linspace(0.01, 0.99, count, dtype=like.dtype, device=like.device)


def check_score(residuals: Tensor, std: Tensor) -> Tensor:
    """Mean over q = 0.01 ... 0.99 of max(q e, (q - 1) e) with e = r - σΦ⁻¹(q): about half the CRPS."""
    total = torch.zeros((), dtype=torch.float64, device=residuals.device)
    levels = _quantile_levels(residuals)
    for q in levels:  # a loop over levels, so that memory does not grow with them
        e = residuals - std * normal_quantile(q)
        total = total + torch.maximum(q * e, (q - 1) * e).mean()
    return total / len(levels)


def interval_score(residuals: Tensor, std: Tensor) -> Tensor:
    """Mean over p = 0.01 ... 0.99 of the central interval's width plus 2/(1 - p) times what misses it."""
    total = torch.zeros((), dtype=torch.float64, device=residuals.device)
    levels = _quantile_levels(residuals)
    for p in levels:
        reach = std * normal_quantile(0.5 + p / 2)
        total = total + (2 * reach + 2 / (1 - p) * (residuals.abs() - reach).clamp_min(0)).mean()
    return total / len(levels)


def binned_calibration(
    residuals: Tensor, std: Tensor, bins: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """RMV = √mean σ², RMSE = √mean r² and rows in equal-count bins of rows sorted by σ, each (bins,).

    Args:
        bins: default √n. (Levi et al. 2022, arXiv:1905.11659.)
    """
    n = len(std)
    count = max(1, min(n, round(math.sqrt(n)) if bins is None else bins))
    order = std.argsort(stable=True)
    place = torch.arange(n, device=std.device) * count // n  # bin of the k-th smallest σ
    rows = torch.bincount(place, minlength=count).to(std)
    zero = std.new_zeros(count)
    rmv = (zero.index_add(0, place, std[order].square()) / rows).sqrt()
    rmse = (zero.index_add(0, place, residuals[order].square()) / rows).sqrt()
    return rmv, rmse, rows


def ence(residuals: Tensor, std: Tensor, bins: int | None = None) -> Tensor:
    """Expected normalised calibration error, the mean over bins of |RMSE - RMV|/RMV."""
    rmv, rmse, _ = binned_calibration(residuals, std, bins)
    return ((rmse - rmv).abs() / rmv).mean()


def rejection_curve(residuals: Tensor, order_by: Tensor) -> Tensor:
    """RMSE of the rows kept when the k with the largest `order_by` are rejected, k = 0 ... n-1, (n,)."""
    kept = residuals.double().square()[order_by.argsort(stable=True)].cumsum(0)
    return (kept / torch.arange(1, len(kept) + 1, device=kept.device)).sqrt().flip(0)


def ause(residuals: Tensor, std: Tensor) -> Tensor:
    """Area between the rejection curves by σ and by |r|, over that between chance and |r|.

    0: σ ranks the rows as their errors do; 1: no better than chance.
    """
    own = rejection_curve(residuals, std).mean()
    oracle = rejection_curve(residuals, residuals.abs()).mean()
    random = residuals.double().square().mean().sqrt()
    return (own - oracle) / (random - oracle)


def regression_metrics(
    residuals: Tensor, std: Tensor, *, resamples: int = 0, generator: torch.Generator | None = None
) -> dict[str, float]:
    """Everything at once, for residuals r and standard deviations σ of n rows.

    Args:
        residuals, std: (n,), unit of the target.
        resamples: with more than 0, also the bootstrap standard errors of the means, as "<name>/error".
        generator: of the resamples and of the simulated ceiling of the rank correlation, on the CPU.

    Returns:
        rmse, mae, nll, crps, mean_z2 (1 if calibrated, ± √(2/n)), coverage_50, _68, _90, _95, ma_cal,
        rms_cal, miscalibration_area, ence, sharpness (√mean σ²), check, interval, spearman (of |r| and σ)
        with its ceiling for a calibrated Gaussian, and ause. nll in nat, scores in the unit of the target.
    """
    r, s = residuals.detach().double(), std.detach().double()
    z = r / s
    each = {
        "nll": gaussian_nll(r, s),
        "crps": gaussian_crps(r, s),
        "mean_z2": z.square(),
        "mae": r.abs(),
    } | {f"coverage_{int(100 * p)}": _inside(z, p).double() for p in LEVELS}
    p, share = interval_calibration(r, s)
    gap = (p - share).abs()
    found = {name: float(value.mean()) for name, value in each.items()} | {
        "rmse": float(r.square().mean().sqrt()),
        "ma_cal": float(gap.mean()),
        "rms_cal": float(gap.square().mean().sqrt()),
        "miscalibration_area": float(torch.trapezoid(gap, p)),
        "ence": float(ence(r, s)),
        "sharpness": float(s.square().mean().sqrt()),
        "check": float(check_score(r, s)),
        "interval": float(interval_score(r, s)),
        "spearman": float(spearman(r.abs(), s)),
        "spearman_ceiling": float(spearman_ceiling(s, generator=generator)),
        "ause": float(ause(r, s)),
    }
    return found | _errors(each, resamples, generator)


def _inside(z: Tensor, p: float) -> Tensor:
    return z.abs() <= float(normal_quantile(torch.tensor(0.5 + p / 2, dtype=torch.float64)))


def _errors(each: dict[str, Tensor], resamples: int, generator: torch.Generator | None) -> dict[str, float]:
    if resamples <= 0:
        return {}
    columns = torch.stack(list(each.values()), 1).cpu()  # (n, metrics)
    spread = bootstrap(columns, lambda c: c.mean(1), resamples=resamples, generator=generator).error
    return {f"{name}/error": float(e) for name, e in zip(each, spread, strict=True)}

"""Does a profile over the layers oscillate, and how surely?"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST = 5  # layers
PERMUTATIONS = 2000
AT_ONCE = 2**24  # numbers permuted together


@dataclass(frozen=True, eq=False)
class Oscillation:
    """Order parameters of profiles y_1 ... y_K with their linear trend removed; shapes (...) unless said."""

    staggered: Tensor  # m = |Σ(-1)^l z_l|/Σ|z_l|: 1 for period two
    signed: Tensor  # Σ(-1)^l z_l/Σ|z_l|, with its phase: + if even layers (l = 1 is the first) lie higher
    p_value: (
        Tensor  # share of the permutations over layers with as large an |Σ(-1)^l z_l|; all of them if few
    )
    p_floor: float  # the smallest p that K layers allow, 2((K/2)!)²/K! (even K)
    turning_points: Tensor  # int64
    turning_z: Tensor  # (turning points - 2(K-2)/3)/√((16K-29)/90)
    periodogram: Tensor  # |Σ z_l e^(-2πi f l)|²/Σz² at f = 1/K ... 1/2, (..., ⌊K/2⌋)
    period: Tensor  # layers, of its largest peak


def oscillation(profile: Tensor, *, permutations: int = PERMUTATIONS, seed: int = 0) -> Oscillation:
    """Period two, turning points and periodogram of profiles over the hidden layers, against their nulls.

    One network gives one sample: a phase that repeats between seeds says more (`phase_over_seeds`).

    Args:
        profile: (..., K), layers of equal width, or a measure that does not depend on the width. Where it is
            not finite, all results are NaN.
        permutations: of the layers, drawn for the p-value; up to 12 layers all arrangements are compared.
        seed: of the permutations.

    Raises:
        ValueError: if there are fewer than 5 layers.
    """
    z = detrended(profile)
    k = z.shape[-1]
    signs = 1 - 2 * (torch.arange(1, k + 1, device=z.device) % 2).to(z.dtype)  # (-1)^l
    total = z.abs().sum(-1)
    unknown = ~total.isfinite()
    flat = total <= 1e-12 * profile.detach().double().abs().sum(-1)
    signed = torch.where(flat, 0.0, (signs * z).sum(-1) / total)
    turns = (z.diff(dim=-1)[..., 1:] * z.diff(dim=-1)[..., :-1] < 0).sum(-1)
    power = torch.fft.rfft(z).abs().square()[..., 1:] / z.square().sum(-1, keepdim=True)
    power = torch.where(flat[..., None], 0.0, power)
    return Oscillation(
        staggered=signed.abs(),
        signed=signed,
        p_value=torch.where(flat, 1.0, _p_value(z, signs, permutations, seed)),
        p_floor=p_floor(k),
        turning_points=turns,
        turning_z=torch.where(unknown, torch.nan, (turns - 2 * (k - 2) / 3) / math.sqrt((16 * k - 29) / 90)),
        periodogram=power,
        period=torch.where(unknown, torch.nan, k / (power.argmax(-1) + 1)),
    )


def detrended(profile: Tensor) -> Tensor:
    """Residuals z of the least-squares line through y_1 ... y_K, float64, (..., K).

    Raises:
        ValueError: if there are fewer than 5 layers.
    """
    if profile.ndim == 0 or profile.shape[-1] < FEWEST:
        raise ValueError(f"a profile needs at least {FEWEST} layers, got shape {tuple(profile.shape)}")
    y = profile.detach().double()
    x = torch.arange(y.shape[-1], dtype=y.dtype, device=y.device)
    x = x - x.mean()
    y = y - y.mean(-1, keepdim=True)
    return y - (x * y).sum(-1, keepdim=True) / x.square().sum() * x


def p_floor(layers: int) -> float:
    """Smallest p-value of the permutation test: both phases of the extreme arrangement."""
    return 2 / math.comb(layers, layers // 2) if layers % 2 == 0 else 1 / math.comb(layers, layers // 2)


def _p_value(z: Tensor, signs: Tensor, permutations: int, seed: int) -> Tensor:
    """Over all arrangements where they are fewer than the permutations; else those drawn and the one seen."""
    k = z.shape[-1]
    exact = math.comb(k, k // 2) <= permutations
    drawn = _arrangements(signs) if exact else _permuted(signs, permutations, seed)
    observed = (z @ signs).abs()
    least = (observed * (1 - 1e-12)).reshape(-1, 1)
    rows = z.reshape(-1, k)
    size = max(1, AT_ONCE // len(drawn))
    exceed = torch.cat(
        [
            ((part @ drawn.mT).abs() >= limit).sum(-1)
            for part, limit in zip(rows.split(size), least.split(size), strict=True)
        ]
    ).reshape(observed.shape)
    p = exceed.double() / len(drawn) if exact else (exceed + 1).double() / (len(drawn) + 1)
    return torch.where(observed.isfinite(), p, torch.nan)


def _arrangements(signs: Tensor) -> Tensor:
    """Every way to place the plus signs, (K over ⌊K/2⌋, K)."""
    k = len(signs)
    places = torch.tensor(list(itertools.combinations(range(k), k // 2)), device=signs.device)
    return signs.new_full((len(places), k), -1.0).scatter(1, places, 1.0)


def _permuted(signs: Tensor, permutations: int, seed: int) -> Tensor:
    """Permuting the signs is permuting the layers, (permutations, K)."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(permutations, len(signs), generator=generator, dtype=torch.float64).argsort(-1)
    return signs[order.to(signs.device)]


def null_staggered(layers: int, *, samples: int = 20000, seed: int = 0) -> tuple[float, float]:
    """Mean and 95 % quantile of m for white noise over so many layers, after removing its trend."""
    generator = torch.Generator().manual_seed(seed)
    z = detrended(torch.randn(samples, layers, generator=generator, dtype=torch.float64))
    signs = 1 - 2 * (torch.arange(1, layers + 1) % 2).to(z.dtype)
    m = (z @ signs).abs() / z.abs().sum(-1)
    return float(m.mean()), float(m.quantile(0.95))


@dataclass(frozen=True)
class PhaseOverSeeds:
    """Whether the phase of an oscillation repeats between seeds."""

    mean: float  # of the signed staggered sums
    standard_error: float
    positive: int  # seeds with a positive one
    seeds: int


def phase_over_seeds(signed: Tensor) -> PhaseOverSeeds:
    """Average of the signed staggered sums Σ(-1)^l z_l/Σ|z_l| over seeds, (seeds,), at least two."""
    if signed.ndim != 1 or len(signed) < 2:
        raise ValueError(f"expected one number per seed and two seeds, got shape {tuple(signed.shape)}")
    s = signed.double()
    error = float(s.std()) / math.sqrt(len(s))
    return PhaseOverSeeds(float(s.mean()), error, int((s > 0).sum()), len(s))

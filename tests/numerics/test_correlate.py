"""Correlation times of processes whose correlation times are known."""

from __future__ import annotations

import math

import pytest
import torch

from observatory.numerics.correlate import autocorrelation, autocovariance, decay_time, integrated_time


def autoregression(r: float, length: int, series: int, generator: torch.Generator) -> torch.Tensor:
    """Stationary x' = r x + √(1 - r²) ξ: variance 1, ρ(l) = r^l, τ_int = ½ (1 + r)/(1 - r)."""
    xi = torch.randn(length, series, generator=generator, dtype=torch.float64)
    x = [xi[0]]
    for kick in xi[1:]:
        x.append(r * x[-1] + math.sqrt(1 - r * r) * kick)
    return torch.stack(x, dim=-1)


@pytest.mark.parametrize("length", [1, 2, 37, 64])
def test_autocovariance_is_the_direct_sum(length, generator):
    x = torch.randn(3, length, generator=generator, dtype=torch.float64)
    d = x - x.mean(-1, keepdim=True)
    direct = torch.stack([(d[:, : length - k] * d[:, k:]).sum(-1) / length for k in range(length)], -1)
    assert torch.allclose(autocovariance(x), direct, atol=1e-14)
    assert torch.allclose(autocovariance(x, lags=1), direct[:, :1], atol=1e-14)


def test_autocovariance_refuses_more_lags_than_times():
    with pytest.raises(ValueError, match="between 1 and 5 lags, 6 were asked for"):
        autocovariance(torch.zeros(5), lags=6)


@pytest.mark.parametrize("cut", ["geyer", "sokal"])
@pytest.mark.parametrize("r", [0.0, 0.5, 0.9])
def test_integrated_time_of_an_autoregression(cut, r, generator):
    x = autoregression(r, 20_000, 40, generator)
    tau = (1 + r) / (1 - r) / 2
    # one series: relative error √(2(2W + 1)/T) with W ≈ 5τ (Madras, Sokal 1988), over 40 series √40 smaller
    tolerance = 5 * math.sqrt(4 * (5 * tau + 1) / 20_000 / 40) + 0.01
    assert integrated_time(x, cut=cut).mean().item() == pytest.approx(tau, rel=tolerance)


def test_decay_time_of_an_autoregression(generator):
    x = autoregression(0.9, 20_000, 40, generator)
    assert decay_time(x).mean().item() == pytest.approx(-1 / math.log(0.9), rel=0.02)


def test_decay_time_interpolates_between_lags():
    x = torch.tensor([1.0, 1.0, -1.0, -1.0] * 50)
    rho = autocorrelation(x)
    assert rho[0] == 1 and abs(rho[1]) < 0.01
    expected = (1 - math.exp(-1)) / (1 - rho[1].item())
    assert decay_time(x).item() == pytest.approx(expected, rel=1e-12)


def test_constant_series_have_no_correlation_time():
    x = torch.stack([torch.full((50,), 0.1), torch.arange(50.0)])
    for time in (integrated_time(x), integrated_time(x, cut="sokal"), decay_time(x)):
        assert time.isnan().tolist() == [True, False]


def test_mean_of_a_correlated_series_has_the_variance_of_fewer_samples(generator):
    x = autoregression(0.8, 2000, 3000, generator)
    effective = 2000 / (2 * integrated_time(x).mean())
    # 3000 means: their variance is known to √(2/3000) = 2.6 %
    assert x.mean(-1).var().item() == pytest.approx(1 / effective.item(), rel=0.13)

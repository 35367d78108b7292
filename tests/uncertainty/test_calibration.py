"""Scales, noise levels and ς² against direct minimisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from heads import DOUBLE, loader, mlp, ridge, table
from scipy import optimize, stats

from observatory.uncertainty import LastLayerGP, additive_noise, conformal_quantile, joint_covariance, scale
from observatory.uncertainty.metrics import gaussian_crps, gaussian_nll
from observatory.uncertainty.regulariser import log_evidence, profile_reg, reg_grid


def rows(n: int = 301, outputs: int = 2, seed: int = 0):
    """Residuals that are s times Student's t, and s²."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.exp(0.8 * torch.randn(n, generator=generator, dtype=DOUBLE))
    chi = torch.randn(n, outputs, 5, generator=generator, dtype=DOUBLE).square().mean(-1)
    z = torch.randn(n, outputs, generator=generator, dtype=DOUBLE) / chi.sqrt()
    return raw.sqrt()[:, None] * z * torch.tensor([0.7, 30.0])[:outputs], raw


@pytest.mark.parametrize(("method", "score"), [("nll", gaussian_nll), ("crps", gaussian_crps)])
def test_scale_minimises_its_score(method, score):
    r, raw = rows()
    alpha = scale(r, raw, method)
    for k in range(2):

        def mean(log_alpha, k=k):
            return score(r[:, k], math.exp(log_alpha) * raw.sqrt()).mean().item()

        # a minimiser is known to √ε only from values: look for the root of the derivative
        def slope(x, mean=mean):
            step = 1e-4
            return (8 * (mean(x + step) - mean(x - step)) - (mean(x + 2 * step) - mean(x - 2 * step))) / step

        best = optimize.brentq(slope, alpha[k].log().item() - 1, alpha[k].log().item() + 1, xtol=1e-12)
        assert alpha[k].item() == pytest.approx(math.exp(best), rel=1e-6)
    if method == "nll":
        expected = 0.5 * (math.log(2 * math.pi) + 1 + 2 * alpha.log() + raw.log().mean())
        found = torch.stack([gaussian_nll(r[:, k], alpha[k] * raw.sqrt()).mean() for k in range(2)])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["nll", "absolute", "median", "crps"])
def test_all_methods_agree_for_gaussian_errors(method, generator):
    raw = torch.exp(torch.randn(200_000, generator=generator, dtype=DOUBLE))
    r = 3.0 * raw.sqrt()[:, None] * torch.randn(200_000, 1, generator=generator, dtype=DOUBLE)
    # the least efficient one, the median, has a relative error of 1.17/√n = 0.26 %
    assert scale(r, raw, method).item() == pytest.approx(3.0, rel=5 * 0.0026)


def test_median_interpolates():
    r = torch.tensor([[1.0], [2.0], [3.0], [10.0]])
    assert scale(r, torch.ones(4), "median").item() == pytest.approx(2.5 / stats.norm.ppf(0.75), rel=1e-12)
    assert scale(r, torch.ones(4), "absolute").item() == pytest.approx(4 * math.sqrt(math.pi / 2), rel=1e-12)


def test_additive_noise_is_the_maximum_of_the_likelihood(generator):
    _, raw = rows(500)
    sigma = (4 * raw + 9).sqrt()[:, None]
    r = sigma * torch.randn(500, 3, generator=generator, dtype=DOUBLE)
    alpha, noise = additive_noise(r, raw)
    for k in range(3):

        def mean(p, k=k):
            return gaussian_nll(r[:, k], (math.exp(p[0]) * raw + math.exp(p[1])).sqrt()).mean().item()

        other = optimize.minimize(
            mean, [1.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14}
        )
        own = gaussian_nll(r[:, k], (alpha[k] ** 2 * raw + noise[k] ** 2).sqrt()).mean().item()
        assert own <= other.fun + 1e-10
        assert alpha[k].item() == pytest.approx(math.exp(other.x[0] / 2), rel=1e-4)
        assert noise[k].item() == pytest.approx(math.exp(other.x[1] / 2), rel=1e-4)
    alpha, noise = additive_noise(r / sigma, raw)  # nothing depends on s
    assert (noise**2 + alpha**2 * raw.mean()).sqrt()[0].item() == pytest.approx(1, abs=0.15)


def test_joint_covariance_is_recovered(generator):
    n = 100_000
    raw = torch.exp(torch.randn(n, generator=generator, dtype=DOUBLE))
    truth = torch.tensor([[2.0, -0.6], [-0.6, 0.5]], dtype=DOUBLE)
    z = torch.randn(n, 2, generator=generator, dtype=DOUBLE) @ torch.linalg.cholesky(truth).mT
    found = joint_covariance(raw.sqrt()[:, None] * z, raw)
    # Var Σ̂_ij = (Σ_ii Σ_jj + Σ_ij²)/n
    spread = (truth.diagonal()[:, None] * truth.diagonal() + truth**2).div(n).sqrt()
    assert bool(((found - truth).abs() < 5 * spread).all())


def test_profile_of_the_regulariser_is_that_of_refactorisations():
    x, y = table(150)
    val, target = table(250, seed=2)
    gp = LastLayerGP(mlp(), reg="profile").fit(loader(x, y)).calibrate(loader(val, target))
    for k in (0, 20, 35, 48):
        other = LastLayerGP(mlp(), reg=float(gp.profile.reg[k])).fit(loader(x, y))
        other.calibrate(loader(val, target))
        r, std = target - other.model(val).detach(), other.predict(val).std
        assert gaussian_nll(r, std).mean().item() == pytest.approx(gp.profile.nll[k].item(), rel=1e-6)
    best = gp.profile.nll.min() + 0.5 * gp.profile.nll_error
    assert gp.profile.nll[gp.profile.reg == gp.profile.best].item() <= best.item()
    assert bool((gp.profile.nll[gp.profile.reg < gp.profile.best] > best).all())
    assert float(gp.fitted.reg) == gp.profile.best
    with pytest.warns(UserWarning, match="ς² is chosen by 100 validation rows; below 200"):
        profile_reg(target[:100], gp.features(val[:100]).detach(), *gp.gram.spectrum())


def test_evidence_is_the_likelihood_of_the_marginal_gaussian():
    x, y = table(40, inputs=6, outputs=1)
    reg, noise = 0.7, 0.3
    covariance = noise**2 * (torch.eye(40, dtype=DOUBLE) + x @ x.mT / reg)
    expected = stats.multivariate_normal(np.zeros(40), covariance.numpy()).logpdf(y[:, 0].numpy())
    w = ridge(x, y, reg)
    values = torch.linalg.eigvalsh(x.mT @ x)
    rest = (y - x @ w).square().sum() + reg * w.square().sum()
    direct = -0.5 * (
        40 * math.log(2 * math.pi * noise**2) + torch.log1p(values / reg).sum() + rest / noise**2
    )
    assert direct.item() == pytest.approx(expected, rel=1e-10)  # the formula of the specification
    values, vectors = torch.linalg.eigh(x.mT @ x)
    grid = torch.tensor([0.01, reg, 5.0], dtype=DOUBLE)
    found, sigma = log_evidence(values, vectors.mT @ x.mT @ y, y.square().sum(0), 40, grid)
    best = -0.5 * (40 * math.log(2 * math.pi * rest / 40) + torch.log1p(values / reg).sum() + 40)
    assert found[1].item() == pytest.approx(best.item(), rel=1e-10)
    assert sigma[1].item() == pytest.approx(math.sqrt(rest.item() / 40), rel=1e-10)


def test_evidence_chooses_what_the_marginal_likelihood_prefers():
    x, y = table(40, inputs=6, outputs=1)
    gp = LastLayerGP(mlp(inputs=6, outputs=1), reg="evidence").fit(loader(x, y))
    f = gp.features(x).detach()

    def marginal(reg: float) -> float:
        k = torch.eye(40, dtype=DOUBLE) + f @ f.mT / reg
        noise2 = (y.mT @ torch.linalg.solve(k, y)).item() / 40
        return -0.5 * (40 * math.log(2 * math.pi * math.e * noise2) + torch.linalg.slogdet(k)[1].item())

    values = [marginal(reg) for reg in reg_grid(gp.gram.spectrum()[0]).tolist()]
    assert marginal(float(gp.fitted.reg)) == pytest.approx(max(values), abs=1e-6)


@pytest.mark.parametrize(("n", "coverage"), [(19, 0.9), (50, 0.8), (9, 0.9)])
def test_conformal_coverage_is_that_of_finite_samples(n, coverage, generator):
    draws = 20_000
    z = torch.randn(draws, n + 1, generator=generator, dtype=DOUBLE).abs()
    q = torch.stack([conformal_quantile(row, coverage) for row in z[:2000, :n]])
    expected = math.ceil((n + 1) * coverage - 1e-9) / (n + 1)
    covered = (z[:2000, n] <= q).double().mean().item()
    assert covered == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / 2000))


def test_too_few_rows_for_an_interval():
    with pytest.raises(ValueError, match=r"8 rows are too few for a coverage of 0\.9: it takes at least 9"):
        conformal_quantile(torch.ones(8), 0.9)


def test_residuals_that_cannot_be_calibrated_are_refused():
    raw = torch.ones(3)
    with pytest.raises(ValueError, match="at least one row"):
        scale(torch.zeros(0, 1), torch.zeros(0))
    with pytest.raises(ValueError, match="all residuals of an output are zero"):
        scale(torch.zeros(3, 1), raw)
    with pytest.raises(ValueError, match="1 residuals are NaN or infinite"):
        scale(torch.tensor([[1.0], [torch.nan], [2.0]]), raw)
    with pytest.raises(ValueError, match="method must be one of nll, absolute, median, crps, loo"):
        scale(torch.ones(3, 1), raw, "guess")

"""Metrics against uncertainty-toolbox, quadrature and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from heads import DOUBLE
from scipy import integrate, stats

from observatory.uncertainty import auroc, regression_metrics, spearman, spearman_ceiling
from observatory.uncertainty.metrics import (
    ause,
    binned_calibration,
    ence,
    gaussian_crps,
    interval_calibration,
    quantile_calibration,
    rejection_curve,
)


@pytest.fixture
def arrays(generator):
    """Residuals that are twice as large as said."""
    sigma = torch.exp(0.5 * torch.randn(400, generator=generator, dtype=DOUBLE))
    return 2 * sigma * torch.randn(400, generator=generator, dtype=DOUBLE), sigma


def test_all_metrics_are_those_of_uncertainty_toolbox(arrays):
    toolbox = pytest.importorskip("uncertainty_toolbox", reason="extra 'peers'")
    from uncertainty_toolbox import metrics_calibration as calibration
    from uncertainty_toolbox import metrics_scoring_rule as scoring

    r, sigma = arrays
    pred, std = np.linspace(-1, 1, 400), sigma.numpy()
    true = pred + r.numpy()
    expected = {
        "nll": scoring.nll_gaussian(pred, std, true),
        "crps": scoring.crps_gaussian(pred, std, true),
        "check": scoring.check_score(pred, std, true),
        "interval": scoring.interval_score(pred, std, true),
        "ma_cal": calibration.mean_absolute_calibration_error(pred, std, true),
        "rms_cal": calibration.root_mean_squared_calibration_error(pred, std, true),
        "miscalibration_area": calibration.miscalibration_area(pred, std, true),
        "sharpness": calibration.sharpness(std),
        "rmse": toolbox.metrics_accuracy.prediction_error_metrics(pred, true)["rmse"],
        "mae": toolbox.metrics_accuracy.prediction_error_metrics(pred, true)["mae"],
    }
    found = regression_metrics(r, sigma)
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-8), name
    for kind, function in (("interval", interval_calibration), ("quantile", quantile_calibration)):
        nominal, share = calibration.get_proportion_lists_vectorized(pred, std, true, prop_type=kind)
        p, own = function(r if kind == "interval" else -r, sigma)  # there r = ŷ - y
        np.testing.assert_allclose(p, nominal, atol=1e-12)
        np.testing.assert_allclose(own, share, atol=1e-12)


def test_ranked_probability_score_is_its_integral():
    for r, sigma in ((0.3, 1.0), (-2.5, 0.7), (0.0, 3.0)):

        def below(t, sigma=sigma):
            return stats.norm.cdf(t, 0, sigma) ** 2

        def above(t, sigma=sigma):
            return stats.norm.sf(t, 0, sigma) ** 2

        options = {"epsabs": 1e-13, "epsrel": 1e-13, "limit": 200}
        whole = integrate.quad(below, -40 * sigma, r, **options)[0]
        whole += integrate.quad(above, r, 40 * sigma, **options)[0]
        own = gaussian_crps(torch.tensor(r, dtype=DOUBLE), torch.tensor(sigma, dtype=DOUBLE)).item()
        assert own == pytest.approx(whole, abs=1e-10)


def test_calibrated_predictions_pass_every_test(generator):
    n = 100_000
    sigma = torch.exp(torch.randn(n, generator=generator, dtype=DOUBLE))
    r = sigma * torch.randn(n, generator=generator, dtype=DOUBLE)
    found = regression_metrics(r, sigma)
    assert found["mean_z2"] == pytest.approx(1, abs=5 * math.sqrt(2 / n))
    for name, p in (("50", 0.5), ("68", 0.6827), ("90", 0.9), ("95", 0.95)):
        assert found[f"coverage_{name}"] == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))
    assert found["spearman"] == pytest.approx(found["spearman_ceiling"], abs=5 * 1.1 / math.sqrt(n))
    assert found["ence"] < 0.06  # 316 bins of 316 rows: √(2/π)/√(2·316) = 0.032 is expected
    rmv, rmse, rows = binned_calibration(r, sigma)
    assert float(rows.sum()) == n and float(rows.min()) >= n // 316
    # within a bin E r² = E σ²; √(2/n_b)/2 relative spread of a root mean square
    assert float(((rmse / rmv - 1) * (2 * rows).sqrt()).abs().median()) == pytest.approx(0.67, abs=0.15)


@pytest.mark.parametrize(("spread", "rho"), [(0.1, 0.11), (0.3, 0.30), (0.5, 0.46), (1.0, 0.69), (2.0, 0.88)])
def test_ceiling_of_the_rank_correlation(spread, rho, generator):
    sigma = torch.exp(spread * torch.randn(50_000, generator=generator, dtype=DOUBLE))
    assert spearman_ceiling(sigma).item() == pytest.approx(rho, abs=0.006 + 5 / math.sqrt(1e5))


def test_ranks_are_those_of_scipy_and_scikit_learn(generator):
    from sklearn.metrics import roc_auc_score

    a = torch.randint(10, (200,), generator=generator).double()
    b = a + torch.randint(6, (200,), generator=generator).double()
    assert spearman(a, b).item() == pytest.approx(stats.spearmanr(a, b).statistic, rel=1e-12)
    labels = np.r_[np.zeros(120), np.ones(80)]
    expected = roc_auc_score(labels, b.numpy())
    assert auroc(b[:120], b[120:]).item() == pytest.approx(expected, rel=1e-12)
    assert math.isnan(auroc(b[:0], b))


def test_rejection_by_the_errors_themselves_is_the_oracle(arrays, generator):
    r, sigma = arrays
    assert ause(r, r.abs()).item() == pytest.approx(0, abs=1e-12)
    blind = torch.stack([ause(r, torch.rand(400, generator=generator, dtype=DOUBLE)) for _ in range(200)])
    # chance: 1 on average, but for the bias of a root of a mean at the end of the curve
    assert blind.mean().item() == pytest.approx(1, abs=0.05)
    assert 0 < ause(r, sigma).item() < 1
    curve = rejection_curve(r, sigma)
    assert curve[0].item() == pytest.approx(r.square().mean().sqrt().item(), rel=1e-12)
    assert curve[-1].item() == pytest.approx(r[sigma.argmin()].abs().item(), rel=1e-12)


def test_normalised_calibration_error_of_a_factor_of_two(arrays):
    r, sigma = arrays
    assert ence(r, sigma, bins=1).item() == pytest.approx(
        abs(r.square().mean().sqrt() / sigma.square().mean().sqrt() - 1).item(), rel=1e-12
    )


def test_bootstrap_errors_are_standard_errors(arrays):
    r, sigma = arrays
    found = regression_metrics(r, sigma, resamples=2000, generator=torch.Generator().manual_seed(0))
    z2 = (r / sigma).square()
    # 2000 resamples know a standard deviation to 1/√4000 = 1.6 %, and n to n - 1
    assert found["mean_z2/error"] == pytest.approx((z2.std() / 20).item(), rel=0.08)

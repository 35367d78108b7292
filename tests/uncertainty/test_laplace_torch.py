"""The same numbers as laplace-torch, on the same network with the same data."""

from __future__ import annotations

import warnings

import pytest
import torch
from heads import DOUBLE, loader, mlp, table

from observatory.uncertainty import LastLayerClassifier, LastLayerGP

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def laplace():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own dependencies call what PyTorch has deprecated
        return pytest.importorskip("laplace", reason="extra 'peers'")


def test_regression(laplace):
    """α = σ_n and ς² = σ_n² δ, with the noise level σ_n and the prior precision δ there."""
    x, y = table(60)
    new, _ = table(20, seed=2)
    sigma, prior = 0.4, 2.5
    model = mlp().eval()
    other = laplace.Laplace(
        model, "regression", "last_layer", "full", sigma_noise=sigma, prior_precision=prior
    )
    other.fit(loader(x, y))
    mean, variance = other(new)
    gp = LastLayerGP(model, reg=sigma**2 * prior).fit(loader(x, y)).calibrate(loader(x, y))
    gp.alpha = torch.full((2,), sigma, dtype=DOUBLE)
    prediction = gp.predict(new)
    torch.testing.assert_close(prediction.mean, mean, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(
        prediction.std.square(), variance.diagonal(dim1=1, dim2=2).to(DOUBLE), rtol=1e-6, atol=0
    )
    assert variance[:, 0, 1].abs().max() < 1e-12  # outputs are independent there too


def test_classification(laplace):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator, dtype=DOUBLE)
    y = torch.randint(3, (60,), generator=generator)
    new = torch.randn(20, 3, generator=generator, dtype=DOUBLE)
    model = mlp(outputs=3).eval()
    other = laplace.Laplace(model, "classification", "last_layer", "full", prior_precision=2.5)
    other.fit(loader(x, y))
    _, variance = other._glm_predictive_distribution(new)
    ggn = LastLayerClassifier(model, covariance="ggn", reg=2.5).fit(loader(x, y))
    torch.testing.assert_close(ggn.logit_covariance(new), variance.to(DOUBLE), rtol=1e-6, atol=1e-12)
    expected = other(new, link_approx="probit")
    torch.testing.assert_close(ggn.predict(new).probabilities, expected.to(DOUBLE), rtol=1e-6, atol=0)

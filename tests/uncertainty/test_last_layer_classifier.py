"""Gaussian logits: exact curvature, shared variances as a temperature, averages against quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from heads import DOUBLE, loader, mlp
from torch import nn

from observatory.uncertainty import LastLayerClassifier, LastLayerGP, classification_metrics
from observatory.uncertainty.averaging import entropy, log_loss, monte_carlo, probit


def classes(n: int, k: int = 3, seed: int = 1, shift: float = 1.0):
    """Overlapping clusters in three dimensions."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    x = torch.randn(n, 3, generator=generator, dtype=DOUBLE) + shift * torch.eye(3, dtype=DOUBLE)[y % 3]
    return x, y


def trained(outputs: int = 3, seed: int = 0, steps: int = 60) -> nn.Sequential:
    """Overfitted enough that averaging helps."""
    x, y = classes(60, max(outputs, 2), seed=9)
    model = mlp(width=10, outputs=outputs, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        loss = (
            nn.functional.cross_entropy(model(x), y)
            if outputs > 1
            else nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y.double())
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def hessian_of_the_head(model: nn.Sequential, x, y):
    """Of the summed cross-entropy in the weights and the bias, row by row, by automatic differentiation."""
    features = torch.cat([model[:2](x), torch.ones(len(x), 1, dtype=DOUBLE)], 1).detach()
    weight = torch.cat([model[2].weight, model[2].bias[:, None]], 1).detach()

    def loss(w):
        return nn.functional.cross_entropy(features @ w.view_as(weight).mT, y, reduction="sum")

    return torch.autograd.functional.hessian(loss, weight.flatten()), features


def test_curvature_is_the_hessian_of_the_summed_loss():
    model, (x, y) = trained(), classes(80)
    ggn = LastLayerClassifier(model, covariance="ggn", reg=0.7).fit(loader(x, y))
    hessian, f = hessian_of_the_head(model, x, y)
    torch.testing.assert_close(ggn.curvature.hessian(), hessian, rtol=1e-9, atol=1e-9)
    inverse = torch.linalg.inv(hessian + 0.7 * torch.eye(len(hessian), dtype=DOUBLE)).view(3, 11, 3, 11)
    expected = torch.einsum("nd,kdje,ne->nkj", f[:9], inverse, f[:9])
    torch.testing.assert_close(ggn.logit_covariance(x[:9]), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        ggn.predict(x[:9]).raw, expected.diagonal(dim1=1, dim2=2).mean(1), rtol=1e-9, atol=0
    )


def test_kronecker_factors_without_forming_the_product():
    model, (x, y) = trained(), classes(80)
    kron = LastLayerClassifier(model, covariance="kron", reg=0.7).fit(loader(x, y))
    p = torch.softmax(model(x), 1).detach()
    mean = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0)
    f = kron.model[:2](x).detach()
    f = torch.cat([f, torch.ones(len(f), 1, dtype=DOUBLE)], 1)
    product = torch.kron(mean, f.mT @ f) + 0.7 * torch.eye(33, dtype=DOUBLE)
    inverse = torch.linalg.inv(product).view(3, 11, 3, 11)
    expected = torch.einsum("nd,kdje,ne->nkj", f[:9], inverse, f[:9])
    torch.testing.assert_close(kron.logit_covariance(x[:9]), expected, rtol=1e-9, atol=1e-12)
    diagonal = kron.curvature.diagonal(f[:9])
    torch.testing.assert_close(diagonal, expected.diagonal(dim1=1, dim2=2), rtol=1e-9, atol=0)


def test_shared_variance_is_a_temperature_that_leaves_the_accuracy():
    model, (x, y) = trained(), classes(300, seed=2)
    shared = LastLayerClassifier(model).fit(loader(*classes(60, seed=9))).calibrate(loader(x, y))
    prediction, z = shared.predict(x), model(x).detach()
    temperature = (1 + math.pi / 8 * shared.scale * prediction.raw).sqrt()
    torch.testing.assert_close(prediction.probabilities, torch.softmax(z / temperature[:, None], 1))
    assert torch.equal(prediction.probabilities.argmax(1), z.argmax(1))
    assert bool((temperature > 1).all())
    found = shared.score(loader(*classes(300, seed=3)))
    assert found["accuracy"] == found["plain/accuracy"] == found["temperature/accuracy"]
    assert found["nll"] < found["plain/nll"]


def test_scale_and_temperature_minimise_the_log_loss():
    from scipy import optimize

    model, (x, y) = trained(steps=200), classes(200, seed=2)
    shared = LastLayerClassifier(model).fit(loader(*classes(60, seed=9))).calibrate(loader(x, y))
    z, raw, y = shared.collect(loader(x, y))

    def loss(log_scale):
        return log_loss(probit(z, math.exp(log_scale) * raw), y).mean().item()

    best = optimize.minimize_scalar(loss, bracket=(0, 5), options={"xtol": 1e-10})
    assert shared.scale.log().item() == pytest.approx(best.x, abs=1e-3)
    temperature = optimize.minimize_scalar(
        lambda t: log_loss(torch.softmax(z / math.exp(t), 1), y).mean().item(), bracket=(0, 1)
    )
    assert shared.temperature.log().item() == pytest.approx(temperature.x, abs=1e-3)


def test_network_that_is_not_confident_enough_keeps_its_probabilities():
    model, (x, y) = trained(), classes(200, shift=8.0)
    with torch.no_grad():
        model[2].weight.mul_(0.1)  # any temperature above 1 makes it worse
    shared = LastLayerClassifier(model).fit(loader(x, y)).calibrate(loader(x, y))
    assert shared.scale.item() == 0
    torch.testing.assert_close(shared.predict(x).probabilities, torch.softmax(model(x), 1).detach())


def test_sampled_probabilities_are_the_average_over_gaussian_logits(generator):
    z = torch.tensor([[1.5, -0.3, 0.2], [0.1, 0.0, 4.0]], dtype=DOUBLE)
    root = torch.tensor([[1.2, 0, 0], [0.5, 0.8, 0], [-0.3, 0.2, 0.9]], dtype=DOUBLE).expand(2, 3, 3)
    p, doubt = monte_carlo(z, root, 200_000, generator=generator)
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    grid = torch.tensor(np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), -1).reshape(-1, 3))
    w = torch.tensor(np.einsum("i,j,k->ijk", *[weights] * 3).ravel()) / weights.sum() ** 3
    drawn = torch.softmax(z + torch.einsum("kj,mj->mk", root[0], grid)[:, None], -1)
    expected = (w[:, None, None] * drawn).sum(0)
    torch.testing.assert_close(p, expected, atol=5 * 0.5 / math.sqrt(2e5), rtol=0)
    information = entropy(expected) - (w[:, None] * entropy(drawn)).sum(0)
    torch.testing.assert_close(doubt, information, atol=0.005, rtol=0)
    assert bool((doubt > 0).all())


def test_single_logit_is_two_classes(generator):
    model, (x, y) = trained(outputs=1), classes(400, k=2, seed=2)
    for covariance in ("shared", "ggn", "kron"):
        one = LastLayerClassifier(model, covariance=covariance).fit(loader(x[:60], y[:60].double()))
        one.calibrate(loader(x, y))
        prediction = one.predict(x)
        v = one.logit_covariance(x)[:, 0]
        expected = torch.sigmoid(model(x) / (1 + math.pi / 8 * v).sqrt()).detach()
        torch.testing.assert_close(prediction.probabilities, expected)
        sampled = one.predict(x[:5], samples=100_000, generator=generator)
        # the probit average of a sigmoid is off by less than 0.02
        torch.testing.assert_close(sampled.probabilities, expected[:5], atol=0.025, rtol=0)
        assert one.score(loader(x, y))["accuracy"] > 0.6
    p = torch.sigmoid(model(x[:60])).detach()[:, 0]
    f = torch.cat([model[:2](x[:60]), torch.ones(60, 1, dtype=DOUBLE)], 1).detach()
    ggn = LastLayerClassifier(model, covariance="ggn").fit(loader(x[:60], y[:60]))
    torch.testing.assert_close(ggn.curvature.hessian(), (f.mT * (p * (1 - p))) @ f, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("covariance", ["shared", "ggn", "kron"])
def test_state_predicts_identically(covariance, tmp_path):
    x, y = classes(60)
    one = LastLayerClassifier(trained(), covariance=covariance).fit(loader(x, y)).calibrate(loader(x, y))
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = LastLayerClassifier(mlp(width=10, outputs=3, seed=5).eval())
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for name in ("probabilities", "raw", "entropy", "confidence"):
        assert torch.equal(getattr(one.predict(x), name), getattr(other.predict(x), name))


def test_tokens_keep_their_shape():
    x, y = classes(60)
    net = trained()

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x[:, None].expand(-1, 4, -1))

    tokens = (
        LastLayerClassifier(Tokens().eval()).fit(loader(x)).calibrate(loader(x, y[:, None].expand(-1, 4)))
    )
    prediction = tokens.predict(x[:7])
    assert prediction.probabilities.shape == (7, 4, 3)
    assert prediction.entropy.shape == prediction.raw.shape == prediction.confidence.shape == (7, 4)


def test_what_cannot_be_done_is_refused():
    x, y = classes(60)
    model = trained()
    with pytest.raises(ValueError, match=r"keeps 33² numbers, .* use covariance='shared' or 'kron'"):
        LastLayerClassifier(model, covariance="ggn", memory=8000).fit(loader(x, y))
    with pytest.raises(RuntimeError, match=r"call calibrate\(validation_loader\) first"):
        LastLayerClassifier(model).fit(loader(x, y)).predict(x)
    with pytest.raises(TypeError, match=r"torch\.float64 are numbers: use LastLayerGP"):
        LastLayerClassifier(model).fit(loader(x, y)).calibrate(loader(x, x[:, 0]))
    with pytest.raises(TypeError, match=r"torch\.int64 are classes: use LastLayerClassifier"):
        LastLayerGP(model).fit(loader(x, y)).calibrate(loader(x, y))
    with pytest.raises(ValueError, match="prior precision"):
        LastLayerClassifier(model, covariance="ggn", reg=0.0).fit(loader(x, y))


def test_metrics_are_those_of_scikit_learn_and_torchmetrics(generator):
    from sklearn.metrics import brier_score_loss, roc_auc_score
    from sklearn.metrics import log_loss as sklearn_log_loss
    from torchmetrics.functional.classification import multiclass_calibration_error

    p = torch.softmax(2 * torch.randn(500, 4, generator=generator, dtype=DOUBLE), 1)
    y = torch.multinomial(p, 1, generator=generator)[:, 0]
    found = classification_metrics(p, y)
    assert found["nll"] == pytest.approx(sklearn_log_loss(y, p), rel=1e-8)
    expected = multiclass_calibration_error(p, y, 4, n_bins=15, norm="l1").item()
    assert found["ece"] == pytest.approx(expected, rel=1e-5)  # torchmetrics counts in float32
    wrong = p.argmax(1) != y
    assert found["error_auroc"] == pytest.approx(roc_auc_score(wrong, -p.amax(1)), rel=1e-10)
    one_hot = nn.functional.one_hot(y, 4).double()
    assert found["brier"] == pytest.approx((p - one_hot).square().sum(1).mean().item(), rel=1e-12)
    two = classification_metrics(p[:, :1], (y == 0).long())
    assert two["brier"] == pytest.approx(2 * brier_score_loss((y == 0).long(), p[:, 0]), rel=1e-10)
    assert 0 < found["adaptive_ece"] < 0.15

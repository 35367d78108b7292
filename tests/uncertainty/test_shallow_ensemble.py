"""Shallow ensembles have the closed-form variance, and propagate to anything computed from outputs."""

from __future__ import annotations

import math

import pytest
import torch
from heads import DOUBLE, loader, mlp, table

from observatory.uncertainty import LastLayerGP


@pytest.fixture
def gp() -> LastLayerGP:
    x, y = table(80)
    return LastLayerGP(mlp(), reg=0.3).fit(loader(x, y)).calibrate(loader(*table(60, seed=2)))


def test_variance_of_the_members_is_that_of_the_process(gp, generator):
    x, _ = table(1, seed=5)
    draws, members = 4000, 16
    features = gp.features(x).detach()
    expected = gp.predict(x).std.square()
    estimates = torch.stack(
        [gp.sample(members, generator=generator)(features).var(0)[0] / expected[0] for _ in range(draws)]
    )
    spread = math.sqrt(2 / (members - 1))
    assert estimates.mean().item() == pytest.approx(1, abs=0.02)
    assert estimates.std(0).mean().item() == pytest.approx(spread, abs=0.01)  # 0.365


def test_recentred_mean_is_the_point_prediction(gp, generator):
    x, _ = table(30, seed=5)
    mean = gp.sample(8, generator=generator)(gp.features(x)).mean(0)
    torch.testing.assert_close(mean, gp.model(x), rtol=1e-6, atol=1e-9)


def test_joint_outputs_have_the_covariance_of_the_errors(gp, generator):
    x, _ = table(1, seed=5)
    members = gp.sample(40_000, joint=True, generator=generator)(gp.features(x).detach())[:, 0]
    expected = gp.covariance_of_outputs * gp.raw_variance(x)
    found = torch.cov(members.mT)
    spread = (expected.diagonal()[:, None] * expected.diagonal() + expected**2).div(40_000).sqrt()
    assert bool(((found - expected).abs() < 5 * spread).all())
    a = torch.tensor([0.3, -2.0], dtype=DOUBLE)  # a linear g has a closed form
    assert (members @ a).var().item() == pytest.approx((a @ expected @ a).item(), rel=5 * math.sqrt(2 / 4e4))


def test_forces_get_the_error_of_their_own_features(gp, generator):
    """The variance of ∂y/∂x over the members is α² ∂f A⁻¹ ∂fᵀ: derivative rows, the bias being 0."""
    x = table(1, seed=5)[0].requires_grad_()
    members = gp.sample(40_000, generator=generator)(gp.features(x))[:, 0, 0]
    jacobian = torch.autograd.functional.jacobian(lambda x: gp.features(x)[0], x)[:, 0, 0]  # ∂f/∂x_0, (d,)
    assert jacobian[-1].item() == 0
    forces = gp.sample(40_000, generator=generator).weights[:, 0] @ jacobian.detach()
    raw = gp.fitted.exact(jacobian.detach()[None])[0]
    assert forces.var().item() == pytest.approx((gp.alpha[0] ** 2 * raw).item(), rel=5 * math.sqrt(2 / 4e4))
    (slope,) = torch.autograd.grad(members[7], x)  # attached to the input, member by member
    assert bool(torch.isfinite(slope).all()) and slope.abs().sum() > 0

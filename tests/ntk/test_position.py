"""Spectral position, and the decay of the loss in factors."""

from __future__ import annotations

import pytest
import torch
from cases import jacobian, make
from torch import nn

from observatory.ntk import empirical_ntk, loss_decay, loss_gradients, spectral_position


def test_gradients_along_an_eigenvector_stand_at_its_eigenvalue():
    eigenvalues = torch.tensor([8.0, 4, 2, 1, 0.5, 0.25], dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    kernel = (q * eigenvalues @ q.T).reshape(3, 2, 3, 2)
    for k, value in enumerate(eigenvalues):
        found = spectral_position(kernel, q[:, k].reshape(3, 2))
        assert found.rayleigh.item() == pytest.approx(value.item(), rel=1e-10)
        assert found.share.item() == pytest.approx(value.item() / 8, rel=1e-10)
        assert found.enhancement.item() == pytest.approx(value.item() * 6 / 15.75, rel=1e-10)
    mixed = spectral_position(kernel, (q @ torch.tensor([1.0, 0, 0, 1, 0, 0], dtype=q.dtype)).reshape(3, 2))
    assert mixed.rayleigh.item() == pytest.approx(4.5, rel=1e-10)  # (8 + 1)/2
    assert mixed.rank.item() == pytest.approx(1 / 6)  # one eigenvalue above


def test_identity_prefers_no_direction():
    kernel = 3 * torch.eye(6, dtype=torch.float64).reshape(3, 2, 3, 2)
    found = spectral_position(kernel, torch.randn(3, 2, dtype=torch.float64))
    assert (found.share.item(), found.enhancement.item()) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize("name", ["mlp", "grouped", "bypassed"])
@pytest.mark.parametrize("regression", [False, True])
def test_loss_decays_by_residual_network_and_position(name, regression):
    """-dL/dt = ‖∇L‖² = GᵀΘG/N², and the three factors are those of the explicit Jacobian."""
    module, x = make(name)
    n = len(x)
    y = torch.randn(n, 3, dtype=torch.float64) if regression else torch.arange(n) % 3
    j = jacobian(module, x).flatten(0, 1)
    module.eval()
    f = module(x).detach()
    g = f - y if regression else f.softmax(-1) - nn.functional.one_hot(y, 3)  # of ½‖f - y‖², and of -ln p
    found = loss_decay(module, x, y)
    gradient = g.flatten() @ j / n
    assert found.decay.item() == pytest.approx((gradient @ gradient).item(), rel=1e-12)
    assert found.residual.item() == pytest.approx(g.square().sum().item() / n**2, rel=1e-12)
    assert found.network.item() == pytest.approx(j.square().sum().item() / len(j), rel=1e-12)
    factors = found.residual * found.network * found.position
    assert factors.item() == pytest.approx(found.decay.item(), rel=1e-12)
    position = spectral_position(empirical_ntk(module, x), loss_gradients(f, y))
    assert position.enhancement.item() == pytest.approx(found.position.item(), rel=1e-10)
    theta = j @ j.T
    rho = g.flatten() @ theta @ g.flatten() / g.square().sum()
    eigenvalues = torch.linalg.eigvalsh(theta)
    assert position.share.item() == pytest.approx((rho / eigenvalues[-1]).item(), rel=1e-10)
    assert position.rank.item() == (eigenvalues > rho).double().mean().item()


def test_what_has_no_position_is_refused():
    kernel = torch.eye(6, dtype=torch.float64).reshape(3, 2, 3, 2)
    with pytest.raises(ValueError, match=r"kernel of shape \(3, 2, 3, 2\) needs gradients .* got \(2, 3\)"):
        spectral_position(kernel, torch.ones(2, 3))
    with pytest.raises(ValueError, match="all loss gradients vanish"):
        spectral_position(kernel, torch.zeros(3, 2))

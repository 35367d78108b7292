"""Spectra of the Fisher information, and the noise of gradients, against the explicit matrix."""

from __future__ import annotations

import pytest
import torch
from cases import jacobian
from fisher_by_definition import NAMES, explicit, small, targets_for
from torch import nn

from observatory.looking import ModelFunction
from observatory.ntk.fisher import fisher_trace
from observatory.ntk.fisher_gram import fisher_spectrum, gradient_noise
from observatory.ntk.fisher_likelihoods import output_likelihood


@pytest.mark.parametrize("name", NAMES)
def test_spectrum_is_that_of_the_explicit_matrix(name):
    net, x, _ = small(6)
    expected = torch.linalg.eigvalsh(explicit(net, x, name)).flip(0)
    found = fisher_spectrum(net, x, likelihood=name)
    size = min(len(expected), len(found.eigenvalues))
    assert (found.eigenvalues[:size] - expected[:size]).abs().max() <= 1e-12 * expected[0]
    assert found.frobenius.item() == pytest.approx(explicit(net, x, name).norm().item(), rel=1e-12)
    trace = fisher_trace(net, x, likelihood=name).value
    assert found.trace.item() == pytest.approx(trace.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["categorical", "poisson"])
def test_empirical_and_centred_spectrum(name):
    net, x, _ = small(12)
    f = ModelFunction.of(net)(x).detach()
    y = targets_for(name, f)
    whom = output_likelihood(name, y, 4)
    scores = torch.einsum("ic,icp->ip", whom.score(f, y), jacobian(net, x))
    second = scores.T @ scores / 12
    covariance = second - torch.outer(scores.mean(0), scores.mean(0))
    for kind, matrix in (("empirical", second), ("covariance", covariance)):
        expected = torch.linalg.eigvalsh(matrix).flip(0)[:12]
        found = fisher_spectrum(net, x, y, kind=kind, likelihood=name).eigenvalues
        assert (found - expected).abs().max() <= 1e-12 * expected[0]


def test_signal_and_noise_of_the_gradient():
    net, x, y = small(12)
    rows = torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)]
            )
            for loss in nn.functional.cross_entropy(net(x), y, reduction="none")
        ]
    )
    found = gradient_noise(net, x, y)
    mean = rows.mean(0)
    assert found.signal.item() == pytest.approx(mean.square().sum().item(), rel=1e-12)
    assert found.signal.item() == pytest.approx((rows @ rows.T).sum().item() / 144, rel=1e-12)
    noise = (rows - mean).square().sum(1).mean().item()
    assert found.noise.item() == pytest.approx(noise, rel=1e-12)
    assert found.noise_scale.item() == pytest.approx(noise / mean.square().sum().item(), rel=1e-12)
    assert found.mean_square.item() == pytest.approx(
        fisher_trace(net, x, y, kind="empirical").value.item(), rel=1e-12
    )
    assert found.noise.item() == pytest.approx(
        fisher_spectrum(net, x, y, kind="covariance").trace.item(), rel=1e-10
    )


# What is refused

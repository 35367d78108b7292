"""Directional derivatives against dense ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from observatory.numerics.curvature import (
    directional_derivatives,
    hessian_products,
    leading_eigenvectors,
    ravel,
    unravel,
)


class NoForwardDerivative(torch.autograd.Function):
    """x³ with a backward pass only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return 3 * x * x * slope


@pytest.fixture
def network(device, generator):
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().to(device)
    x = torch.randn(7, 4, generator=generator, dtype=torch.float64).to(device)
    theta = {name: p.detach() for name, p in net.named_parameters()}

    def output(parameters):
        return torch.func.functional_call(net, dict(parameters), (x,))

    directions = torch.randn(6, ravel(theta).numel(), generator=generator, dtype=torch.float64).to(device)
    return output, theta, directions


def dense_hessian(loss, theta):
    return torch.autograd.functional.hessian(lambda flat: loss(unravel(flat, theta)), ravel(theta))


def test_ravel_and_unravel_are_inverse(network):
    _, theta, directions = network
    assert torch.equal(ravel(unravel(directions, theta), leading=1), directions)
    with pytest.raises(ValueError, match="vectors of length 5 for 43 parameters"):
        unravel(torch.zeros(5), theta)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_hessian_products_match_the_dense_hessian(network, chunk_size):
    output, theta, directions = network

    def loss(parameters):
        return output(parameters).logsumexp(-1).mean()

    seen = hessian_products(loss, theta, directions, chunk_size=chunk_size)
    assert torch.allclose(seen, directions @ dense_hessian(loss, theta), atol=1e-12)


def test_directional_derivatives_match_the_dense_jacobian(network):
    output, theta, directions = network
    jacobian = torch.autograd.functional.jacobian(lambda flat: output(unravel(flat, theta)), ravel(theta))
    expected = torch.einsum("ncp,kp->knc", jacobian, directions)
    assert torch.allclose(directional_derivatives(output, theta, directions), expected, atol=1e-12)


def test_hessian_falls_back_to_reverse_mode_and_says_so(device):
    theta = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64, device=device)}

    def loss(parameters):
        return NoForwardDerivative.apply(parameters["w"]).sum()

    with pytest.warns(UserWarning, match="no forward-mode derivative"):
        seen = hessian_products(loss, theta, torch.eye(2, dtype=torch.float64, device=device))
    assert torch.allclose(seen, torch.diag(6 * theta["w"]))


def test_derivatives_fall_back_to_reverse_mode_twice(device):
    theta = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64, device=device)}
    directions = torch.tensor([[1.0, 0.0], [1.0, -1.0]], dtype=torch.float64, device=device)
    with pytest.warns(UserWarning, match="no forward-mode derivative"):
        seen = directional_derivatives(lambda t: NoForwardDerivative.apply(t["w"]), theta, directions)
    assert torch.allclose(seen, 3 * theta["w"] ** 2 * directions)


@pytest.mark.parametrize("count", [1, 5])
def test_lanczos_finds_the_largest_eigenvalues(count, generator):
    root = torch.randn(80, 80, generator=generator, dtype=torch.float64)
    matrix = root + root.T
    start = torch.randn(80, generator=generator, dtype=torch.float64)
    values, vectors = leading_eigenvectors(lambda v: v @ matrix, start, count, tolerance=1e-9)
    expected = torch.linalg.eigvalsh(matrix)[-count:].flip(0)
    assert torch.allclose(values, expected, rtol=1e-10)
    assert torch.allclose(vectors @ vectors.T, torch.eye(count).double(), atol=1e-10)
    assert torch.allclose(vectors @ matrix, values[:, None] * vectors, atol=1e-6)


def test_lanczos_survives_an_invariant_subspace():
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5])).double()
    values, _ = leading_eigenvectors(lambda v: v @ matrix, torch.eye(4)[1].double(), 3)
    assert values.tolist() == pytest.approx([3, 2, 1])
    with pytest.raises(ValueError, match="between 1 and 4"):
        leading_eigenvectors(lambda v: v @ matrix, torch.ones(4).double(), 5)

"""Infinite width: closed forms, limits, and networks that come close."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from observatory.solvable.infinite_width import two_layer_relu_kernel, wide_network_kernels


def inputs(n: int = 8, d: int = 5) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64)


def deviation(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def finite_kernel(x: torch.Tensor, width: int) -> torch.Tensor:
    """Θ of f = (1/√m) Σ a relu(w·x) for one draw of w, a."""
    w, a = torch.randn(x.shape[1], width).double(), torch.randn(width).double()
    z = x @ w
    slope = (z > 0) * a
    return (z.relu() @ z.relu().T + (x @ x.T) * (slope @ slope.T)) / width


def test_equal_and_opposite_inputs():
    x = torch.tensor([[2.0, 0], [-2, 0], [0, 3]])
    # φ = 0: Θ = x·x'/2 + ‖x‖‖x'‖/2; φ = π: 0; φ = π/2: ‖x‖‖x'‖/2π
    expected = torch.tensor([[4, 0, 3 / math.pi], [0, 4, 3 / math.pi], [3 / math.pi, 3 / math.pi, 9]])
    torch.testing.assert_close(two_layer_relu_kernel(x), expected.double(), rtol=1e-6, atol=1e-12)


def test_finite_networks_approach_it_as_the_root_of_the_width():
    x = inputs()
    limit = two_layer_relu_kernel(x)
    widths = [256, 4096, 65536]
    errors = [torch.tensor([deviation(finite_kernel(x, m), limit) for _ in range(8)]).mean() for m in widths]
    # the mean of 8 relative errors scatters by about a tenth; one decade of width for half a decade of error
    slope = (errors[2] / errors[0]).log() / math.log(256)
    assert float(slope) == pytest.approx(-0.5, abs=0.08)
    assert 0.002 < float(errors[2]) < 0.012


def test_two_layer_kernel_is_the_recursion():
    x, x2 = inputs(), inputs(3)
    whole = wide_network_kernels(
        math.sqrt(5) * x, math.sqrt(5) * x2, hidden=1, weight_variance=1.0, bias_variance=0.0
    )
    torch.testing.assert_close(whole.ntk, two_layer_relu_kernel(x, x2), rtol=1e-12, atol=1e-12)


def test_linear_model_without_hidden_layers():
    x = inputs()
    kernels = wide_network_kernels(x, hidden=0, weight_variance=1.7, bias_variance=0.3)
    torch.testing.assert_close(kernels.ntk, 1.7 * x @ x.T / 5 + 0.3)
    torch.testing.assert_close(kernels.nngp, kernels.ntk)
    standard = wide_network_kernels(x, hidden=[], parameterisation="standard")
    torch.testing.assert_close(standard.ntk, x @ x.T + 1)


def test_relu_with_weight_variance_two_keeps_the_length():
    x = inputs()
    for hidden in (1, 5, 20):
        k = wide_network_kernels(x, hidden=hidden, weight_variance=2.0).nngp
        torch.testing.assert_close(k.diagonal(), 2 * x.square().mean(1))


def test_ntk_of_deep_relu_network_on_the_diagonal():
    # Θ = (depth + 1) K there, since E[relu'²] σ_w² = 1
    x = inputs()
    kernels = wide_network_kernels(x, hidden=4)
    torch.testing.assert_close(kernels.ntk.diagonal(), 5 * kernels.nngp.diagonal())


@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize("parameterisation", ["ntk", "standard"])
def test_autograd_of_a_wide_network(activation, parameterisation):
    x, width, w2, b2 = inputs(4, 3), 1500, 1.6, 0.2
    generator = torch.Generator().manual_seed(1)
    sizes = [3, width, width, 1]
    phi = torch.relu if activation == "relu" else torch.erf
    scaled = parameterisation == "ntk"
    theta = []
    for n, m in itertools.pairwise(sizes):
        w = torch.randn(m, n, generator=generator, dtype=torch.float64)
        b = torch.randn(m, generator=generator, dtype=torch.float64)
        theta += [w, b] if scaled else [w * math.sqrt(w2 / n), b * math.sqrt(b2)]
    theta = [p.requires_grad_() for p in theta]

    def f(point: torch.Tensor) -> torch.Tensor:
        a = point
        for layer in range(3):
            w, b = theta[2 * layer : 2 * layer + 2]
            z = math.sqrt(w2 / w.shape[1]) * w @ a + math.sqrt(b2) * b if scaled else w @ a + b
            a = phi(z) if layer < 2 else z
        return a[0]

    rows = torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(f(p), theta)]) for p in x])
    exact = wide_network_kernels(
        x, hidden=[width, width], activation=activation, parameterisation=parameterisation,
        weight_variance=w2, bias_variance=b2,
    )  # fmt: skip
    # relative fluctuations are a few times 1/√width = 0.026
    assert deviation(rows @ rows.T, exact.ntk) < 0.12


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_kernels_are_covariances_of_random_features(activation):
    x = inputs(4, 3)
    w = torch.randn(3, 400_000, dtype=torch.float64) * math.sqrt(1.6 / 3)
    b = math.sqrt(0.2) * torch.randn(400_000, dtype=torch.float64)
    features = (torch.relu if activation == "relu" else torch.erf)(x @ w + b)
    expected = 1.6 * features @ features.T / 400_000 + 0.2
    kernels = wide_network_kernels(x, hidden=1, activation=activation, weight_variance=1.6, bias_variance=0.2)
    assert deviation(kernels.nngp, expected) < 5e-3 * 5  # 5 standard errors of about 5e-3


def test_ensembles_zero_vectors_and_what_is_refused():
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    x[0, 0] = 0
    batched = wide_network_kernels(x, hidden=2).ntk
    assert batched.isfinite().all()
    torch.testing.assert_close(batched[1], wide_network_kernels(x[1], hidden=2).ntk)
    with pytest.raises(ValueError, match="needs the widths"):
        wide_network_kernels(x, hidden=2, parameterisation="standard")

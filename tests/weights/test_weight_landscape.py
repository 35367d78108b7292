"""Values, curvature and noise of landscapes against explicit gradients and dense Hessians."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from observatory.looking import ModelFunction
from observatory.numerics.curvature import ravel
from observatory.weights import (
    Landscape,
    Lines,
    noise_covariance,
)
from observatory.weights.terrain import survey


def classifier(device: torch.device | str = "cpu") -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return net.to(device), torch.randn(50, 5).double().to(device), (torch.arange(50) % 3).to(device)


def middle(net: nn.Module) -> ModelFunction:
    return ModelFunction.of(net, select=r"^2\.")


def test_curvature_equals_the_dense_hessian(device, generator, monkeypatch):
    net, x, y = classifier(device)
    landscape = Landscape(middle(net), (x, y), batch_size=16)  # 16 + 16 + 16 + 2: unequal batches

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = {"2.weight": flat[:36].reshape(6, 6), "2.bias": flat[36:]}
        return nn.functional.cross_entropy(torch.func.functional_call(net, parts, (x,)), y)

    theta = ravel({k: p.detach() for k, p in net[2].named_parameters()})
    dense = torch.autograd.functional.hessian(loss, theta)
    directions = torch.randn(7, 42, generator=generator, dtype=torch.float64).to(device)
    products = landscape.hessian_products(directions)
    for room in (2**28, 0):  # with the slopes of the layer kept, and without
        monkeypatch.setattr("observatory.weights.lines.SLOPES_BYTES", room)
        lines = Lines(landscape, directions)
        slopes, curvature = lines.derivatives()
        assert torch.allclose(slopes, directions @ landscape.gradient(), atol=1e-12)
        assert torch.allclose(curvature, (products * directions).sum(1), rtol=1e-10)
    expected = ((directions @ dense) * directions).sum(1)
    assert torch.allclose((products * directions).sum(1), expected, rtol=1e-5)
    assert torch.allclose(landscape.gradient(), torch.autograd.functional.jacobian(loss, theta), atol=1e-12)
    points = theta + 0.1 * directions
    assert torch.allclose(landscape.at(points), torch.stack([loss(p) for p in points]).double(), rtol=1e-12)
    distances = torch.tensor([[0.1, -0.3]]).double().to(device).expand(7, 2)
    along = torch.stack([torch.stack([loss(theta + s * p) for s in (0.1, -0.3)]) for p in directions])
    assert torch.allclose(lines.values(distances), along, rtol=1e-12)


def test_noise_covariance_equals_that_of_explicit_gradients(generator):
    net, x, y = classifier()
    gradients = []
    for one, label in zip(x, y, strict=True):
        value = nn.functional.cross_entropy(net(one[None]), label[None])
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(value, list(net[2].parameters()))])
        )
    stacked = torch.stack(gradients)
    covariance = stacked.T.cov(correction=0)
    directions = torch.linalg.qr(torch.randn(42, 6, generator=generator, dtype=torch.float64)).Q.T
    seen = noise_covariance(Landscape(middle(net), (x, y), batch_size=16), directions)
    assert torch.allclose(seen, directions @ covariance @ directions.T, atol=1e-14)


def test_landscape_is_that_of_the_evaluated_network():
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    x, y = torch.randn(20, 5), torch.arange(20) % 3
    net(x)  # moves the running statistics
    before = {k: v.clone() for k, v in net.state_dict().items()}
    expected = nn.functional.cross_entropy(net.eval()(x), y)
    net.train()
    landscape = Landscape(net, (x, y))
    assert landscape.value().item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(landscape.value(), landscape.value())
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_half_precision_weights_are_evaluated_in_single_precision():
    net = nn.Linear(4, 2).bfloat16()
    landscape = Landscape(net, (torch.randn(8, 4).bfloat16(), torch.arange(8) % 2))
    assert landscape.center.dtype == torch.float32
    assert landscape.hessian_products(torch.eye(10)).dtype == torch.float64


class Cube(torch.autograd.Function):
    """x³ without a forward-mode derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class Cubic(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Cube.apply(super().forward(x))


def test_networks_without_forward_mode_are_surveyed_in_reverse_mode():
    torch.manual_seed(2)
    net, x, y = Cubic(3, 3).double(), torch.randn(20, 3).double(), torch.arange(20) % 3
    plain = ModelFunction.of(net, output=lambda out: out)
    same = nn.Linear(3, 3).double()
    same.load_state_dict(net.state_dict())
    reference = survey(
        Landscape(same, (x, y), loss=lambda f, t: nn.functional.cross_entropy(f**3, t)), *DIRECTIONS
    )
    with pytest.warns(UserWarning, match="no forward-mode derivative"):
        seen = survey(Landscape(plain, (x, y)), *DIRECTIONS)
        slope, curvature = Lines(Landscape(plain, (x, y)), DIRECTIONS[0]).derivatives()
    assert torch.allclose(seen.hessian, reference.hessian, atol=1e-10)
    assert torch.allclose(seen.noise, reference.noise, atol=1e-10)
    assert torch.allclose(seen.flatness, reference.flatness, rtol=1e-3)
    assert torch.allclose(slope, reference.slope) and torch.allclose(curvature, reference.curvature)


DIRECTIONS = (torch.eye(12).double()[:4], torch.ones(4).double())


def test_empty_data_are_refused():
    with pytest.raises(ValueError, match="at least one example"):
        Landscape(nn.Linear(2, 2), [])


def test_landscape_of_torchs_own_mean_squared_error(generator):
    x, y = torch.randn(30, 4, generator=generator), torch.randn(30, 1, generator=generator)
    net = nn.Linear(4, 1, bias=False)
    own = Landscape(ModelFunction.of(net), (x, y), loss=nn.MSELoss())
    half = Landscape(ModelFunction.of(net), (x, y))  # the likelihood's own: half the square
    own_lines, half_lines = Lines(own, torch.eye(4)), Lines(half, torch.eye(4))
    distances = torch.tensor([[-1.0, 2.0]]).expand(4, 2)
    for seen, expected in zip(
        (*own_lines.derivatives(), own_lines.values(distances)),
        (*half_lines.derivatives(), half_lines.values(distances)),
        strict=True,
    ):
        torch.testing.assert_close(seen, 2 * expected, rtol=1e-5, atol=1e-6)

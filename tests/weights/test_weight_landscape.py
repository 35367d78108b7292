"""Curvature, flatness and noise of landscapes that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from observatory.looking import ModelFunction
from observatory.numerics.curvature import ravel
from observatory.weights import (
    Landscape,
    SgdSetting,
    batch_sampling,
    flatness,
    lyapunov_residual,
    noise_covariance,
    quadratic_flatness,
    temperature,
)
from observatory.weights.noise import sgd_coefficients
from observatory.weights.terrain import survey


class Quadratic(nn.Module):
    """One example, whose loss is L₀ + b·θ + ½θᵀHθ."""

    def __init__(self, hessian: torch.Tensor, slope: torch.Tensor, level: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(slope), dtype=torch.float64))
        self.register_buffer("hessian", hessian)
        self.register_buffer("slope", slope)
        self.level = level

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.level + self.slope @ self.theta + self.theta @ self.hessian @ self.theta / 2
        return value.expand(len(x), 1)


def mean_output(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return output.mean()


DATA = (torch.zeros(1, 1), torch.zeros(1, 1))


def quadratic(curvature: list[float], slope: list[float], level: float = 0.3) -> Landscape:
    hessian, b = torch.diag(torch.tensor(curvature)).double(), torch.tensor(slope).double()
    return Landscape(Quadratic(hessian, b, level), DATA, loss=mean_output)


def classifier(device: torch.device | str = "cpu") -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return net.to(device), torch.randn(50, 5).double().to(device), (torch.arange(50) % 3).to(device)


def middle(net: nn.Module) -> ModelFunction:
    return ModelFunction.of(net, select=r"^2\.")


def test_flatness_of_a_quadratic_has_the_closed_form():
    curvature, slope = [4.0, 1.0, 1e-3, 2.0], [0.0, 0.0, 1e-3, -0.7]
    landscape = quadratic(curvature, slope)
    kappa, b = torch.tensor(curvature).double(), torch.tensor(slope).double()
    seen = flatness(
        landscape, torch.eye(4).double(), slopes=b, curvature=kappa, scale=torch.ones(4), s_max=1e6
    )
    expected = quadratic_flatness(torch.tensor(0.3), b, kappa)
    assert seen.width.tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    assert expected[0].item() == pytest.approx(2 * math.sqrt(2 * (math.e - 1) * 0.3 / 4))
    values = landscape.along(torch.eye(4).double(), torch.stack([seen.left, seen.right], 1))
    assert torch.allclose(values, torch.full_like(values, 0.3 * math.e), rtol=2e-3)  # F to 1e-3: L to 2e-3


@pytest.mark.parametrize("wrong", [0.0, 100.0, -1.0])
def test_flatness_does_not_depend_on_the_first_guess(wrong):
    landscape = quadratic([1.0, 0.01], [0.0, 0.05])
    exact = quadratic_flatness(torch.tensor(0.3), torch.tensor([0.0, 0.05]), torch.tensor([1.0, 0.01]))
    seen = flatness(
        landscape, torch.eye(2).double(), slopes=torch.tensor([0.0, 0.05]), curvature=torch.full((2,), wrong),
        scale=torch.full((2,), 1e-3),
    )  # fmt: skip
    assert seen.width.tolist() == pytest.approx(exact.tolist(), rel=1e-3)


class Quartic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 + self.s[0] ** 4 + torch.tanh(self.s[1]) ** 2).expand(len(x), 1)


def test_flatness_of_a_quartic_and_of_a_profile_that_never_rises_enough():
    landscape = Landscape(Quartic(), DATA, loss=mean_output)
    zero = torch.zeros(2).double()
    seen = flatness(
        landscape, torch.eye(2).double(), slopes=zero, curvature=zero, scale=zero + 0.1, s_max=50.0
    )
    assert seen.width[0].item() == pytest.approx(2 * (math.e - 1) ** 0.25, rel=1e-3)
    assert seen.width[1].item() == math.inf


@pytest.mark.parametrize("level", [0.0, -0.5])
def test_flatness_is_refused_where_the_loss_is_not_positive(level):
    one = torch.ones(1).double()
    with pytest.raises(ValueError, match="use the curvature instead"):
        flatness(quadratic([1.0], [0.0], level), one[:, None], slopes=0 * one, curvature=one, scale=one)


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
    for many in (2**19, 0):  # by Hessian products, and along the lines themselves
        monkeypatch.setattr("observatory.weights.landscape.MANY_WEIGHTS", many)
        slopes, curvature = landscape.line_derivatives(directions)
        assert torch.allclose(slopes, directions @ landscape.gradient(), atol=1e-12)
        assert torch.allclose(curvature, (products * directions).sum(1), rtol=1e-10)
    expected = ((directions @ dense) * directions).sum(1)
    assert torch.allclose((products * directions).sum(1), expected, rtol=1e-5)
    assert torch.allclose(landscape.gradient(), torch.autograd.functional.jacobian(loss, theta), atol=1e-12)
    points = theta + 0.1 * directions
    assert torch.allclose(landscape.at(points), torch.stack([loss(p) for p in points]).double(), rtol=1e-12)
    distances = torch.tensor([[0.1, -0.3]]).double().to(device).expand(7, 2)
    along = torch.stack([torch.stack([loss(theta + s * p) for s in (0.1, -0.3)]) for p in directions])
    assert torch.allclose(landscape.along(directions, distances), along, rtol=1e-12)


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


def test_networks_without_forward_mode_are_surveyed_in_reverse_mode(monkeypatch):
    monkeypatch.setattr("observatory.weights.landscape.MANY_WEIGHTS", 0)
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
        slope, curvature = Landscape(plain, (x, y)).line_derivatives(DIRECTIONS[0])
    assert torch.allclose(seen.hessian, reference.hessian, atol=1e-10)
    assert torch.allclose(seen.noise, reference.noise, atol=1e-10)
    assert torch.allclose(seen.flatness, reference.flatness, rtol=1e-3)
    assert torch.allclose(slope, reference.slope) and torch.allclose(curvature, reference.curvature)


DIRECTIONS = (torch.eye(12).double()[:4], torch.ones(4).double())


def test_empty_data_are_refused():
    with pytest.raises(ValueError, match="at least one example"):
        Landscape(nn.Linear(2, 2), [])


def test_setting_of_sgd_and_its_temperature():
    setting = SgdSetting(learning_rate=0.1, batch_size=10, samples=100, momentum=0.9)
    assert setting.noise_scale == pytest.approx(90 / 99 / 10)
    # η/(1 - β) c f/(2S) with c = 3
    assert temperature(torch.tensor(3.0), setting).item() == pytest.approx(1.0 * 3 * 90 / 99 / 20)


def test_lyapunov_residual_vanishes_for_its_own_solution(generator):
    from observatory.solvable.online_regression import stationary_covariance

    root = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    hessian, noise = root[0] @ root[0].T / 10 + torch.eye(4) / 5, root[1] @ root[1].T
    setting = SgdSetting(learning_rate=0.2, batch_size=5, samples=50, sampling="with replacement")
    sigma = stationary_covariance(hessian, noise / 5, 0.2)
    assert lyapunov_residual(hessian, sigma, noise, setting).item() < 1e-12
    assert lyapunov_residual(hessian, 2 * sigma, noise, setting).item() == pytest.approx(1, abs=1e-12)


def test_sampling_is_read_from_the_loader():
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

    data = TensorDataset(torch.zeros(40, 1))
    assert batch_sampling(DataLoader(data, 8, shuffle=True)) == (8, 40, "without replacement")
    drawn = DataLoader(data, 8, sampler=RandomSampler(data, replacement=True))
    assert batch_sampling(drawn) == (8, 40, "with replacement")
    with pytest.raises(ValueError, match="give batch_size="):
        batch_sampling(DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 8, False)))


def test_coefficients_are_those_of_plain_sgd_only():
    weights = [nn.Parameter(torch.zeros(2))]
    sgd = torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-3)
    assert sgd_coefficients(sgd.param_groups[0], sgd) == (0.1, 0.9, 1e-3)
    for other in (torch.optim.Adam(weights), torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True)):
        with pytest.raises(ValueError, match="hold for SGD without"):
            sgd_coefficients(other.param_groups[0], other)


def test_landscape_of_torchs_own_mean_squared_error(generator):
    x, y = torch.randn(30, 4, generator=generator), torch.randn(30, 1, generator=generator)
    net = nn.Linear(4, 1, bias=False)
    own = Landscape(ModelFunction.of(net), (x, y), loss=nn.MSELoss())
    half = Landscape(ModelFunction.of(net), (x, y))  # the likelihood's own: half the square
    directions, distances = torch.eye(4), torch.tensor([[-1.0, 2.0]]).expand(4, 2)
    for seen, expected in zip(
        (*own.line_derivatives(directions), own.along(directions, distances)),
        (*half.line_derivatives(directions), half.along(directions, distances)),
        strict=True,
    ):
        torch.testing.assert_close(seen, 2 * expected, rtol=1e-5, atol=1e-6)

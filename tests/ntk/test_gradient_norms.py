"""Per-example gradient norms equal those of row-by-row autograd."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, jacobian, make
from torch import Tensor, nn

from observatory.looking import ModelFunction
from observatory.ntk import (
    empirical_ntk_by_layer,
    factors,
    gradient_products,
    norms,
    squared_gradient_norms,
    squared_gradient_norms_by_layer,
)
from observatory.ntk.convolutions import ConvolutionFactors


def directions_of(module: nn.Module, x: Tensor, d: int = 3) -> Tensor:
    shape = ModelFunction.of(module)(x).shape
    return torch.randn(d, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def explicit(module: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """⟨∂(v_id · f_i), ∂(v_ie · f_i)⟩, (N, D, D)."""
    rows = torch.einsum("icp,dic->idp", jacobian(module, x), v.flatten(2) if v.ndim > 2 else v[..., None])
    return rows @ rows.mT


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("max_memory", [2**30, 1])
def test_norms_and_products_are_those_of_autograd(name, max_memory):
    module, x = make(name)
    v = directions_of(module, x)
    expected = explicit(module, x, v)
    products = gradient_products(module, x, v, max_memory=max_memory)
    norms = squared_gradient_norms(module, x, v, max_memory=max_memory)
    assert (products - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert (norms - expected.diagonal(dim1=1, dim2=2).T).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("name", ["residual with batch norm", "tied", "bypassed"])
def test_layers_are_those_of_the_kernel(name):
    module, x = make(name)
    unit = torch.eye(3, dtype=torch.float64)[:, None].expand(3, len(x), 3)
    parts = squared_gradient_norms_by_layer(module, x, unit)
    kernels = empirical_ntk_by_layer(module, x, kind="trace")
    assert parts.keys() == kernels.keys()
    for layer, part in parts.items():
        torch.testing.assert_close(part.sum(0), kernels[layer].diagonal(), rtol=1e-10, atol=1e-12)


def test_directions_may_follow_from_the_outputs():
    module, x = make("mlp")
    y = torch.arange(6) % 3

    def towards_the_target(outputs: Tensor, at: slice) -> Tensor:
        return (torch.nn.functional.one_hot(y[at], 3) - outputs.softmax(-1))[None]

    v = towards_the_target(ModelFunction.of(module)(x).detach(), slice(0, 6))
    found = squared_gradient_norms(module, x, towards_the_target, max_memory=1)
    torch.testing.assert_close(found, squared_gradient_norms(module, x, v), rtol=1e-12, atol=0)


def test_linear_softmax_norm_is_the_closed_form():
    """f = Wx + b: ‖∂(v·f)/∂θ‖² = (‖x‖² + 1) ‖v‖²."""
    net, x = nn.Linear(5, 3).double(), torch.randn(6, 5, dtype=torch.float64)
    v = torch.randn(2, 6, 3, dtype=torch.float64)
    expected = (x.square().sum(1) + 1) * v.square().sum(2)
    torch.testing.assert_close(squared_gradient_norms(net, x, v), expected, rtol=1e-12, atol=0)


def test_directions_of_another_shape_are_refused():
    module, x = make("mlp")
    with pytest.raises(ValueError, match=r"\(D, 6, 3\), got \(6, 3\)"):
        squared_gradient_norms(module, x, torch.ones(6, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="no examples"):
        squared_gradient_norms(module, x[:0], torch.ones(1, 0, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["forming at once", "by sites"])
@pytest.mark.parametrize("numbers", [1, 300])
def test_every_way_gives_the_same_norms(name, way, numbers, monkeypatch):
    module, x = make(name)
    v = directions_of(module, x)
    expected = explicit(module, x, v).diagonal(dim1=1, dim2=2).T
    monkeypatch.setattr(norms, "norms_way", lambda *_: way)
    monkeypatch.setattr(factors, "CACHED_NUMBERS", numbers)
    found = squared_gradient_norms(module, x, v)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), (3, 11)),
        (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)), (3, 7, 6)),
        (nn.Conv2d(3, 4, 4, padding="same", padding_mode="reflect", bias=False), (3, 5, 5)),
        (nn.Conv2d(4, 6, 3, stride=3, groups=2), (4, 8, 7)),
        (nn.Conv3d(2, 3, (2, 3, 2), stride=(1, 2, 1), padding=1), (2, 4, 5, 3)),
        # wide images: their patches lie in memory along the pixels
        (nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), (2, 31)),
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), (4, 6, 13)),
        (nn.Conv3d(1, 2, 2, padding=(1, 0, 1), bias=False), (1, 3, 2, 9)),
    ],
)
def test_norms_of_convolutions_are_those_of_autograd(layer, shape):
    """For every rank, stride, dilation and padding."""
    net, x = (
        nn.Sequential(layer, nn.Flatten(), nn.Tanh()).double(),
        torch.randn(4, *shape, dtype=torch.float64),
    )
    v = torch.randn(2, *net(x).shape, dtype=torch.float64)
    for one, found in zip(v, squared_gradient_norms(net, x, v), strict=True):
        for i in range(4):
            gradients = torch.autograd.grad((net(x[i : i + 1]) * one[i]).sum(), list(net.parameters()))
            expected = sum(g.square().sum() for g in gradients)
            torch.testing.assert_close(found[i], expected, rtol=1e-10, atol=0)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(16, 4, 3, stride=2, padding=2, dilation=2), (16, 23)),
        (nn.Conv2d(16, 6, 3, padding=1), (16, 5, 4)),
        (nn.Conv2d(4, 4, (3, 2), padding="same", groups=4), (4, 5, 4)),
        (nn.Conv3d(2, 4, 2, padding=(1, 0, 1), groups=2, bias=False), (2, 3, 4, 3)),
    ],
)
def test_gradients_formed_as_a_grouped_convolution(layer, shape, monkeypatch):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    module = nn.Sequential(layer, nn.Flatten(1))
    v = directions_of(module, x)
    expected = explicit(module.double(), x.double(), v).diagonal(dim1=1, dim2=2).T
    used = []
    original = ConvolutionFactors._weight_norms
    monkeypatch.setattr(
        ConvolutionFactors,
        "_weight_norms",
        lambda self, rows: used.append(self._as_grouped_convolution) or original(self, rows),
    )
    monkeypatch.setattr(norms, "norms_way", lambda *_: "forming at once")
    found = squared_gradient_norms(module.float(), x, v.float())
    assert used == [torch.backends.mkldnn.is_available()]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()

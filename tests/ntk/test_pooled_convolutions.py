"""Gradients of pooled convolutions that are summed from chosen patches, in single precision."""

from __future__ import annotations

import pytest
import torch
from cases import jacobian
from torch import Tensor, nn

from observatory.looking import ModelFunction
from observatory.looking.calls import record_calls
from observatory.ntk import (
    contraction,
    empirical_ntk,
    factors,
    gradient_products,
    pooled_convolutions,
    squared_gradient_norms,
)
from observatory.ntk.claims import claims_of
from observatory.ntk.contraction import Side
from observatory.ntk.pooled_convolutions import PooledConvolutionFactors

TOLERANCE = (
    2**-17
)  # of the largest entry: 64 roundings of single precision, of sums of a few hundred products

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="no fast sum of an embedding bag"
)


def network(first: nn.Conv2d, pool: nn.Module, *, rectified: bool = True) -> nn.Module:
    """Two convolutions; the first has more windows (16 of 64 sites at least) than the second."""
    between = (nn.ReLU(),) if rectified else ()
    return nn.Sequential(
        first, *between, pool, nn.Conv2d(6, 5, 3, padding=1), *between, nn.MaxPool2d(2), nn.Flatten(),
        nn.LazyLinear(3),
    )  # fmt: skip


NETWORKS = {
    "rectified": lambda: network(nn.Conv2d(2, 6, 3, padding=1), nn.MaxPool2d(2)),
    "more windows than columns": lambda: network(nn.Conv2d(2, 6, 1), nn.MaxPool2d(2)),
    "not rectified": lambda: network(nn.Conv2d(2, 6, 3, padding=1), nn.MaxPool2d(2), rectified=False),
    "overlapping windows at the border": lambda: network(
        nn.Conv2d(2, 6, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)
    ),
    "holes in windows": lambda: network(nn.Conv2d(2, 6, 3), nn.MaxPool2d(2, 3, dilation=2, ceil_mode=True)),
    "groups, reflected, strided": lambda: network(
        nn.Conv2d(2, 6, 3, 2, 1, groups=2, padding_mode="reflect"), nn.MaxPool2d(2)
    ),
    "without bias": lambda: network(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.MaxPool2d(2)),
    "channels last": lambda: network(nn.Conv2d(2, 6, 3, padding=1), nn.MaxPool2d(2)),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(7, 2, 16, 16)
    net = NETWORKS[name]()
    net(x)
    if name == "channels last":
        net, x = (t.to(memory_format=torch.channels_last) for t in (net, x))
    return net, x


def sides_of(net: nn.Module, x: Tensor, d: int) -> Side:
    function = ModelFunction.of(net)
    record = record_calls(function, x)
    directions = torch.randn(d, *record.output.shape)
    return Side(record, directions, claims_of(function, record).claims)


def explicit(net: nn.Module, x: Tensor, select: str | None = None) -> Tensor:
    """In double precision, (N, 3, N, 3)."""
    j = jacobian(net.double(), x.double())
    if select is not None:
        numbers = {name: p.numel() for name, p in net.named_parameters()}
        chosen = [torch.full((size,), name.endswith(select)) for name, size in numbers.items()]
        j = j[..., torch.cat(chosen)]
    net.float()
    return torch.einsum("icp,jdp->icjd", j, j)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_both_convolutions_are_summed_for_several_directions(name):
    net, x = made(name)
    kinds = [uses[0] for uses in sides_of(net, x, 3).factors]
    assert [isinstance(kind, PooledConvolutionFactors) and kind.summing for kind in kinds] == [
        True,
        True,
        False,
    ]
    single = [type(uses[0]) for uses in sides_of(net, x, 1).factors]
    assert [kind is PooledConvolutionFactors for kind in single] == [True, False, False]
    with torch.no_grad():
        double = [uses[0] for uses in sides_of(net.double(), x.double(), 3).factors]
    assert isinstance(double[0], PooledConvolutionFactors) and not double[0].summing


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("select", [None, "weight", "bias"])
def test_kernels(name, select):
    net, x = made(name)
    expected = explicit(net, x, select)
    assert_close(empirical_ntk(net, x, select=select), expected)
    assert_close(empirical_ntk(net, x[:3], x[2:], select=select), expected[:3, :, 2:])
    traced = torch.einsum("icjc->ij", expected)
    assert_close(empirical_ntk(net, x, kind="trace", select=select), traced)
    assert_close(empirical_ntk(net, x[:3], x[2:], kind="trace", select=select), traced[:3, 2:])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", ["forming at once", "forming later", "by sites"])
@pytest.mark.parametrize("tile", [1, 2000])
def test_ways_and_tiles(name, way, tile, monkeypatch):
    def always(uses, *_, **__):
        return way if isinstance(uses[0], PooledConvolutionFactors) else "by sites"

    net, x = made(name)
    expected = explicit(net, x)
    monkeypatch.setattr(contraction, "crossed_way", always)
    monkeypatch.setattr(contraction, "paired_way", always)
    monkeypatch.setattr(pooled_convolutions, "SUMMED_NUMBERS", tile)
    assert_close(empirical_ntk(net, x), expected)
    assert_close(empirical_ntk(net, x[:1], x[1:]), expected[:1, :, 1:])
    assert_close(empirical_ntk(net, x, kind="trace"), torch.einsum("icjc->ij", expected))


def test_symmetric_kernel_of_many_rows_is_mirrored():
    """From 128 rows on, blocks below the diagonal are copied from above."""
    net, x = made("rectified")
    x = torch.cat([x, *(x.roll(k, 3) for k in range(1, 7))])  # 49 examples, 147 rows
    expected = explicit(net, x)
    found = empirical_ntk(net, x)
    assert_close(found, expected)
    assert torch.equal(found, found.permute(2, 3, 0, 1))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("cached", [1, factors.CACHED_NUMBERS])
def test_norms_and_products(name, d, cached, monkeypatch):
    monkeypatch.setattr(factors, "CACHED_NUMBERS", cached)
    net, x = made(name)
    v = torch.randn(d, 7, 3)
    rows = torch.einsum("icp,dic->idp", jacobian(net.double(), x.double()), v.double())
    net.float()
    expected = rows @ rows.mT
    assert_close(squared_gradient_norms(net, x, v), expected.diagonal(dim1=1, dim2=2).T)
    assert_close(gradient_products(net, x, v), expected)


def test_example_that_is_not_finite_leaves_the_others():
    net, x = made("rectified")
    x[2, 0, 5, 5], x[4, 1, 0, 0] = torch.nan, torch.inf
    kernel = empirical_ntk(net, x, allow_nonfinite=True)
    finite = [0, 1, 3, 5, 6]
    assert_close(kernel[finite][:, :, finite], empirical_ntk(net, x[finite]).double())
    assert kernel[2].isnan().any() and kernel[4].isnan().any()

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
from observatory.ntk.factors import Factors
from observatory.ntk.pooled_convolutions import PooledConvolutionFactors

# Of the largest entry: 64 roundings of single precision, in sums of a few hundred products.
TOLERANCE = 2**-17

fast = pytest.mark.skipif(not pooled_convolutions._has_fast_sum(), reason="no fast sum of an embedding bag")


class Mean(nn.Module):
    """Of all pixels, so that images may have any size."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def network(first: nn.Conv2d, pool: nn.Module, *, rectified: bool = True) -> nn.Module:
    between = (nn.ReLU(),) if rectified else ()
    second = nn.Conv2d(first.out_channels, 17, 3, padding=1)
    return nn.Sequential(first, *between, pool, second, *between, nn.MaxPool2d(2), Mean(), nn.Linear(17, 3))


def convolution(**options: object) -> nn.Conv2d:
    return nn.Conv2d(2, 16, **({"kernel_size": 3, "padding": 1} | options))


NETWORKS = {
    "rectified": lambda: network(convolution(), nn.MaxPool2d(2)),
    "few columns": lambda: network(convolution(kernel_size=1), nn.MaxPool2d(2)),
    "not rectified": lambda: network(convolution(), nn.MaxPool2d(2), rectified=False),
    "overlaps at the border": lambda: network(convolution(), nn.MaxPool2d(3, 2, padding=1)),
    "holes in windows": lambda: network(convolution(), nn.MaxPool2d(2, 3, dilation=2, ceil_mode=True)),
    "groups, reflected, strided": lambda: network(
        nn.Conv2d(2, 34, 3, 2, 1, groups=2, padding_mode="reflect"), nn.MaxPool2d(2)
    ),
    "without bias": lambda: network(convolution(bias=False), nn.MaxPool2d(2)),
    "channels last": lambda: network(convolution(), nn.MaxPool2d(2)),
}


def made(name: str, size: int = 16) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net, x = NETWORKS[name](), torch.randn(7, 2, size, size)
    if name == "channels last":
        net, x = (t.to(memory_format=torch.channels_last) for t in (net, x))
    return net, x


def factors_of(net: nn.Module, x: Tensor, d: int) -> list[Factors]:
    function = ModelFunction.of(net)
    record = record_calls(function, x)
    side = Side(record, torch.randn(d, *record.output.shape), claims_of(function, record).claims)
    return [uses[0] for uses in side.factors]


def summing(net: nn.Module, x: Tensor, d: int = 3) -> list[bool]:
    return [isinstance(each, PooledConvolutionFactors) and each.summing for each in factors_of(net, x, d)]


def gradients(net: nn.Module, x: Tensor, select: str = "") -> Tensor:
    """In double precision, (N, 3, P), of the parameters whose names end so."""
    j = jacobian(net.double(), x.double())
    chosen = [torch.full((p.numel(),), name.endswith(select)) for name, p in net.named_parameters()]
    net.float()
    return j[..., torch.cat(chosen)]


def full(one: Tensor, other: Tensor) -> Tensor:
    return torch.einsum("icp,jdp->icjd", one, other)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@fast
@pytest.mark.parametrize("name", NETWORKS)
def test_both_convolutions_are_summed_for_several_directions_in_single_precision(name):
    net, x = made(name)
    assert summing(net, x) == [True, True, False]
    assert [isinstance(each, PooledConvolutionFactors) for each in factors_of(net, x, 1)] == [
        True,
        False,
        False,
    ]
    assert not any(summing(net, x, 1)) and not any(summing(net.double(), x.double()))


@fast
@pytest.mark.parametrize(
    ("first", "pool", "size"),
    [
        (convolution(), nn.MaxPool2d(2, 1), 16),  # as many windows as sites
        (convolution(), nn.MaxPool2d((3, 1)), 16),
        (convolution(groups=2), nn.MaxPool2d(2), 16),  # eight outputs for each copied patch
        (convolution(), nn.MaxPool2d(2), 128),  # patches do not stay in the cache
    ],
)
def test_sums_are_for_few_windows_many_outputs_and_small_images(first, pool, size):
    assert summing(network(first, pool), torch.randn(2, 2, size, size))[0] is False


def test_without_a_fast_sum_gradients_are_spread(monkeypatch):
    monkeypatch.setattr(pooled_convolutions, "_has_fast_sum", lambda: False)
    net, x = made("rectified")
    assert not any(summing(net, x))
    j = gradients(net, x)
    assert_close(empirical_ntk(net, x), full(j, j))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("select", ["", "weight", "bias"])
def test_kernels(name, select):
    net, x = made(name)
    j = gradients(net, x, select)
    expected = full(j, j)
    select = select or None
    assert_close(empirical_ntk(net, x, select=select), expected)
    assert_close(empirical_ntk(net, x[:3], x[2:], select=select), expected[:3, :, 2:])
    traced = torch.einsum("icjc->ij", expected)
    assert_close(empirical_ntk(net, x, kind="trace", select=select), traced)
    assert_close(empirical_ntk(net, x[:3], x[2:], kind="trace", select=select), traced[:3, 2:])


@pytest.mark.parametrize("sizes", [(16, 17), (17, 16), (8, 64), (128, 16)])
@pytest.mark.parametrize("name", ["rectified", "overlaps at the border"])
def test_images_of_unequal_size(sizes, name):
    (net, x), (_, y) = (made(name, size) for size in sizes)
    x, y = x[:3], y[3:]
    expected = full(gradients(net, x), gradients(net, y))
    assert_close(empirical_ntk(net, x, y), expected)
    assert_close(empirical_ntk(net, x, y, kind="trace"), torch.einsum("icjc->ij", expected))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", ["forming at once", "forming later", "by sites"])
@pytest.mark.parametrize("tile", [1, 2000])
def test_ways_and_tiles(name, way, tile, monkeypatch):
    def always(uses, *_, **__):
        return way if isinstance(uses[0], PooledConvolutionFactors) else "by sites"

    net, x = made(name)
    j = gradients(net, x)
    monkeypatch.setattr(contraction, "crossed_way", always)
    monkeypatch.setattr(contraction, "paired_way", always)
    monkeypatch.setattr(pooled_convolutions, "SUMMED_NUMBERS", tile)
    assert_close(empirical_ntk(net, x), full(j, j))
    assert_close(empirical_ntk(net, x[:1], x[1:]), full(j[:1], j[1:]))
    assert_close(empirical_ntk(net, x, kind="trace"), torch.einsum("icp,jcp->ij", j, j))


@pytest.mark.parametrize("way", ["forming at once", "forming later"])
def test_symmetric_kernel_of_many_rows_is_mirrored(way, monkeypatch):
    """From 128 rows on, blocks below the diagonal are copied from above."""
    net, x = made("rectified")
    x = torch.cat([x, *(x.roll(k, 3) for k in range(1, 7))])  # 49 examples, 147 rows
    j = gradients(net, x)
    monkeypatch.setattr(contraction, "crossed_way", lambda *_, **__: way)
    found = empirical_ntk(net, x)
    assert_close(found, full(j, j))
    assert torch.equal(found, found.permute(2, 3, 0, 1))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("cached", [2**10, factors.CACHED_NUMBERS])
def test_norms_and_products(name, d, cached, monkeypatch):
    """Some examples after the others, or all at once."""
    monkeypatch.setattr(factors, "CACHED_NUMBERS", cached)
    net, x = made(name)
    v = torch.randn(d, 7, 3)
    rows = torch.einsum("icp,dic->idp", gradients(net, x), v.double())
    expected = rows @ rows.mT
    assert_close(squared_gradient_norms(net, x, v), expected.diagonal(dim1=1, dim2=2).T)
    assert_close(gradient_products(net, x, v), expected)


@fast
def test_sums_over_the_largest_images_that_are_summed():
    net, x = made("rectified", 96)  # 2304 windows of 9216 sites with 18 inputs
    assert summing(net, x)[0]
    j = gradients(net, x)
    assert_close(empirical_ntk(net, x), full(j, j))


def test_example_that_is_not_finite_leaves_the_others():
    net, x = made("rectified")
    x[2, 0, 5, 5], x[4, 1, 0, 0] = torch.nan, torch.inf
    kernel = empirical_ntk(net, x, allow_nonfinite=True)
    finite = [0, 1, 3, 5, 6]
    assert_close(kernel[finite][:, :, finite], empirical_ntk(net, x[finite]).double())
    assert kernel[2].isnan().any() and kernel[4].isnan().any()


def test_windows_without_any_place_in_the_image():
    """Two rows apart around an image of one row; -inf, and of no consequence once that is cut off."""
    torch.manual_seed(0)
    layers = (
        convolution(),
        nn.MaxPool2d(2, 5, padding=1, dilation=2),
        nn.Hardtanh(),
        Mean(),
        nn.Linear(16, 3),
    )
    net, x = nn.Sequential(*layers), torch.randn(5, 2, 1, 16)
    j = gradients(net, x)
    assert_close(empirical_ntk(net, x), full(j, j))

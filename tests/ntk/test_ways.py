"""Every way of contracting a layer gives the same kernel, in tiles and blocks of any size."""

from __future__ import annotations

import pytest
import torch
from cases import jacobian, make
from torch import nn

from observatory.ntk import contraction, empirical_ntk, factors, sites
from observatory.ntk.factors import SiteFactors

NAMES = [
    "mlp",
    "residual with batch norm",
    "grouped",
    "dilated and strided",
    "1d convolution",
    "frozen",
    "transformer with tied embedding",
    "padded embedding",
    "windows",
    "bypassed",
]


def forced(way):
    """`way` wherever there are sites."""

    def choose(uses, others, *_, **__):
        sites = len(uses) == 1 and isinstance(uses[0], SiteFactors)
        return way if sites else "forming at once"

    return choose


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["forming at once", "forming later", "by sites"])
@pytest.mark.parametrize("tile", [1, 300])
def test_full_kernel(name, way, tile, monkeypatch):
    module, x = make(name)
    expected = empirical_ntk(module, x)
    cross = empirical_ntk(module, x[:3], x[1:])
    monkeypatch.setattr(contraction, "crossed_way", forced(way))
    for room in (contraction, sites):
        monkeypatch.setattr(room, "TILE_NUMBERS", tile)
    monkeypatch.setattr(factors, "CACHED_NUMBERS", tile)
    monkeypatch.setattr(contraction, "BATCHED_NUMBERS", (0, 0))
    torch.testing.assert_close(empirical_ntk(module, x), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(empirical_ntk(module, x[:3], x[1:]), cross, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["forming at once", "by sites"])
@pytest.mark.parametrize("tile", [1, 300])
def test_trace_kernel(name, way, tile, monkeypatch):
    module, x = make(name)
    expected = empirical_ntk(module, x, kind="trace")
    cross = empirical_ntk(module, x[:3], x[1:], kind="trace")
    monkeypatch.setattr(contraction, "paired_way", forced(way))
    for room in (contraction, sites):
        monkeypatch.setattr(room, "TILE_NUMBERS", tile)
    monkeypatch.setattr(contraction, "BATCHED_NUMBERS", (0, 0))
    torch.testing.assert_close(empirical_ntk(module, x, kind="trace"), expected, rtol=1e-10, atol=1e-12)
    found = empirical_ntk(module, x[:3], x[1:], kind="trace")
    torch.testing.assert_close(found, cross, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lengths", [(6, 9), (12, 4)])
def test_sequences_of_unequal_length(lengths):
    """Sites are not paired, though that would be cheap for four or six of them."""
    torch.manual_seed(0)
    layers = (nn.Conv1d(3, 40, 3), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(40, 3))
    net = nn.Sequential(*layers).double()
    x, y = (torch.randn(4, 3, length, dtype=torch.float64) for length in lengths)
    expected = torch.einsum("icp,jdp->icjd", jacobian(net, x), jacobian(net, y))
    found = empirical_ntk(net, x, y)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    trace = empirical_ntk(net, x, y, kind="trace")
    torch.testing.assert_close(trace, torch.einsum("icjc->ij", expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["full", "trace"])
@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_blocks_of_unequal_size(kind, size, monkeypatch):
    """Blocks of 4 and 2 examples batch their backward passes differently."""
    module, x = make("mlp")
    expected = empirical_ntk(module, x, kind=kind)
    monkeypatch.setattr("observatory.ntk.sizes.Sizes.block", lambda *_, **__: size)
    monkeypatch.setattr(contraction, "BATCHED_NUMBERS", (2 * 4 * 10, 0))
    torch.testing.assert_close(empirical_ntk(module, x, kind=kind), expected, rtol=1e-12, atol=1e-14)


def test_symmetric_kernels_of_many_rows_are_mirrored():
    """Above 128 rows only the blocks above the diagonal are computed."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 7)).double()
    x = torch.randn(23, 3, dtype=torch.float64)
    kernel = empirical_ntk(net, x)
    torch.testing.assert_close(kernel, empirical_ntk(net, x, x), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(kernel, kernel.permute(2, 3, 0, 1), rtol=1e-12, atol=1e-14)

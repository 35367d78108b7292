"""Against independent packages: equal where they are right, and right where they are silently wrong."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch
from cases import jacobian, make
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.ntk import empirical_ntk


def by_nngeometry(module: nn.Module, x: Tensor) -> Tensor:
    """(N, C, N, C)."""
    gram = pytest.importorskip("nngeometry.gram", reason="independent package: install the extra 'peers'")
    loader = DataLoader(TensorDataset(x), batch_size=len(x))
    return gram.GramMatrix(module.eval(), loader).to_torch().detach().permute(1, 0, 3, 2)


def deviation(kernel: Tensor, expected: Tensor) -> float:
    return ((kernel - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ["mlp", "residual with batch norm", "1d convolution", "dilated and strided"])
def test_equal_to_nngeometry(name):
    module, x = make(name)
    assert deviation(by_nngeometry(module, x), empirical_ntk(module, x)) < 1e-6  # kept in float32 there


@pytest.mark.parametrize(
    "name, error", [("reused", 0.4), ("grouped", 0.05), ("reflect padding", 0.05), ("circular padding", 0.04)]
)
def test_right_where_nngeometry_is_silently_wrong(name, error):
    """Modules that are called several times, groups of channels, padding by anything but zeros."""
    module, x = make(name)
    theirs, j = by_nngeometry(module, x), jacobian(module, x)
    explicit = torch.einsum("icp,jdp->icjd", j, j)
    assert deviation(empirical_ntk(module, x), explicit) < 1e-10
    if version("nngeometry") == "0.4":  # later ones may be right
        assert deviation(theirs, explicit) > error

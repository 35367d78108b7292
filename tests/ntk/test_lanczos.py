"""Collective variables of kernels that are not formed, against those of kernels that are."""

from __future__ import annotations

import math

import pytest
import torch
from cases import make
from torch import nn

from observatory.ntk import (
    collective_variables,
    empirical_ntk,
    estimated_spectrum,
    estimated_variables,
    kernel_product,
    to_matrix,
)


def matrix_of(eigenvalues: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    n = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return q @ torch.diag(eigenvalues) @ q.T


def times(matrix: torch.Tensor):
    return lambda v: v @ matrix


@pytest.mark.parametrize(
    "name", ["mlp", "residual with batch norm", "tied", "transformer with tied embedding"]
)
def test_product_is_that_with_the_kernel(name):
    module, x = make(name)
    kernel = to_matrix(empirical_ntk(module, x))
    product, n = kernel_product(module, x)
    v = torch.randn(3, n, dtype=torch.float64)
    torch.testing.assert_close(product(v), v @ kernel, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(kernel_product(module, x, at_once=3)[0](v), v @ kernel, rtol=1e-10, atol=1e-12)


def test_few_eigenvalues_are_found_exactly():
    """30 steps exhaust a kernel of rank 8: nothing is left to chance."""
    eigenvalues = torch.zeros(200, dtype=torch.float64)
    eigenvalues[:8] = torch.logspace(0, -2, 8, dtype=torch.float64)
    exact = collective_variables(matrix_of(eigenvalues))
    found = estimated_spectrum(times(matrix_of(eigenvalues)), 200, trace=eigenvalues.sum())
    for name in ("trace", "entropy", "effective_rank", "participation_ratio", "largest_eigenvalue"):
        assert getattr(found, name).item() == pytest.approx(getattr(exact, name).item(), rel=1e-6)


def test_identity_has_one_eigenvalue_in_every_direction():
    found = estimated_spectrum(lambda v: 3 * v, 50)
    assert found.trace.item() == pytest.approx(150, rel=1e-12)
    assert found.entropy.item() == pytest.approx(math.log(50), rel=1e-12)
    assert found.participation_ratio.item() == pytest.approx(50, rel=1e-12)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_spectra_that_fall_as_powers(exponent):
    """Within 5 standard errors, and these below two hundredths of a nat (of 2 to 6)."""
    eigenvalues = torch.arange(1, 601, dtype=torch.float64) ** -exponent
    matrix = matrix_of(eigenvalues)
    exact = collective_variables(matrix)
    found = estimated_spectrum(times(matrix), 600, trace=eigenvalues.sum())
    assert found.entropy_error < 0.02
    assert abs(found.entropy - exact.entropy) < 5 * found.entropy_error + 1e-6
    assert abs(found.participation_ratio - exact.participation_ratio) < (
        5 * found.participation_ratio_error + 1e-6 * exact.participation_ratio
    )
    assert found.largest_eigenvalue.item() == pytest.approx(exact.largest_eigenvalue.item(), rel=1e-3)


def test_errors_are_those_of_repetition():
    """The reported standard error is the spread over 60 seeds: 10 vectors know it to about 25 %."""
    eigenvalues = torch.arange(1, 201, dtype=torch.float64) ** -1.0
    matrix = matrix_of(eigenvalues)
    found = [
        estimated_spectrum(
            times(matrix), 200, trace=eigenvalues.sum(), steps=15, generator=torch.Generator().manual_seed(k)
        )
        for k in range(60)
    ]
    spread = torch.stack([one.entropy for one in found]).std()
    reported = torch.stack([one.entropy_error for one in found]).square().mean().sqrt()
    assert 0.6 < (reported / spread).item() < 1.6


def test_full_kernel_of_a_network_is_estimated_without_being_formed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 10))
    x = torch.randn(40, 8)
    exact = collective_variables(to_matrix(empirical_ntk(net.double(), x.double())))
    found = estimated_variables(net.float(), x, at_once=10)
    assert found.n == 400
    assert found.trace.item() == pytest.approx(exact.trace.item(), rel=1e-5)  # exact but for float32
    assert found.largest_eigenvalue.item() == pytest.approx(exact.largest_eigenvalue.item(), rel=1e-4)
    assert abs(found.entropy - exact.entropy) < 5 * found.entropy_error + 1e-4


@pytest.mark.slow
def test_kernel_of_4096_rows():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    x = torch.randn(256, 20)
    kernel = to_matrix(empirical_ntk(net, x)).double()
    eigenvalues = torch.linalg.eigvalsh(kernel).clamp_min(0)
    q = eigenvalues / eigenvalues.sum()
    found = estimated_variables(net, x, at_once=10)
    assert found.entropy.item() == pytest.approx(torch.special.entr(q).sum().item(), rel=5e-3)
    assert found.participation_ratio.item() == pytest.approx(1 / q.square().sum().item(), rel=5e-3)
    assert found.largest_eigenvalue.item() == pytest.approx(eigenvalues[-1].item(), rel=1e-5)


def test_estimates_refuse_what_has_no_spread():
    with pytest.raises(ValueError, match="at least 2 vectors"):
        estimated_spectrum(lambda v: v, 5, vectors=1)
    with pytest.raises(ValueError, match="no spectrum to describe"):
        estimated_spectrum(lambda v: 0 * v, 5)
    with pytest.raises(ValueError, match="no examples"):
        estimated_variables(nn.Linear(2, 2), torch.zeros(0, 2))

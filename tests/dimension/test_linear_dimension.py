"""Participation ratios and spectra of weights: closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from observatory.dimension import (
    class_purity,
    fit_tail,
    levina_bickel,
    linear_dimension,
    local_pca_dimension,
    participation_ratio,
    two_nn,
    weight_spectrum,
)

VARIANCES = torch.tensor([5, 3, 1, 1, 0.5, 0.2, 0.1, 0.1], dtype=torch.float64)


def test_participation_ratio_of_few_samples_is_debiased(generator):
    x = torch.randn(3000, 30, 8, generator=generator, dtype=torch.float64) * VARIANCES.sqrt()
    true = float(VARIANCES.sum() ** 2 / VARIANCES.square().sum())
    assert true == pytest.approx(3.272, abs=5e-4)
    assert participation_ratio(x).mean().item() == pytest.approx(3.016, abs=0.03)
    centred = x - x.mean(1, keepdim=True)
    s = centred.mT @ centred / 29
    trace, square, n = s.diagonal(dim1=1, dim2=2).sum(1), s.square().sum((1, 2)), 29
    upper = n / ((n - 1) * (n + 2)) * ((n + 1) * trace**2 - 2 * square)
    lower = n**2 / ((n - 1) * (n + 2)) * (square - trace**2 / n)
    # the ratio of the mean moments is unbiased; each repetition gives the ratio of its own
    assert (upper.mean() / lower.mean()).item() == pytest.approx(3.27, abs=0.03)
    torch.testing.assert_close(participation_ratio(x, debias=True), upper / lower, rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", [(200, 30), (30, 200)])
def test_linear_dimensions_are_those_of_the_covariance(shape, generator):
    x = torch.randn(shape, generator=generator, dtype=torch.float64).cumsum(1)
    values = torch.linalg.eigvalsh(torch.cov(x.T)).flip(0).clamp_min(0)
    found = linear_dimension(x)
    rank = min(shape[0] - 1, shape[1])
    torch.testing.assert_close(found.eigenvalues[:rank], values[:rank], rtol=1e-9, atol=1e-9)
    p = values / values.sum()
    assert found.participation_ratio.item() == pytest.approx((1 / p.square().sum()).item(), rel=1e-9)
    assert found.entropy_rank.item() == pytest.approx(torch.special.entr(p).sum().exp().item(), rel=1e-6)
    assert found.components == int((p.cumsum(0) < 0.9).sum()) + 1
    assert found.debiased == participation_ratio(x, debias=True)


def test_curved_manifolds_have_more_linear_dimensions(generator):
    sphere = torch.nn.functional.normalize(torch.randn(20000, 4, generator=generator, dtype=torch.float64))
    # S³ fills four dimensions equally; 1/PR exceeds 1/4 by about d/N
    assert participation_ratio(sphere).item() == pytest.approx(4, abs=0.02)


def test_constant_samples_have_no_dimension_and_unknown_ones_an_unknown_one():
    constant = linear_dimension(torch.ones(20, 4))
    assert constant.participation_ratio == constant.components == constant.entropy_rank == 0
    assert participation_ratio(torch.full((20, 4), torch.nan)).isnan()


def test_deep_linear_network_has_the_dimensions_of_its_product(generator):
    x = torch.randn(2000, 40, generator=generator, dtype=torch.float64)  # whitened
    product = torch.eye(40, dtype=torch.float64)
    for fan_in, fan_out in [(40, 30), (30, 20), (20, 3), (3, 20), (20, 30)]:
        weight = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float64) / fan_in**0.5
        product = weight @ product
        h = x @ product.T
        s2 = torch.linalg.svdvals(product).square()
        expected = (s2.sum().square() / s2.square().sum()).item()
        # 1/PR of N samples is too large by 1/N; its own scatter is √(8/N)/PR, here below 3 %
        assert participation_ratio(h, debias=True).item() == pytest.approx(expected, rel=0.06)
        rank = int(torch.linalg.matrix_rank(product))
        if rank == 3:
            assert torch.linalg.matrix_rank(h - h.mean(0)) == 3
            assert participation_ratio(h) <= 3
            assert two_nn(h).value < 3.2 and levina_bickel(h).value < 3.2
    assert rank == 3


def test_local_components_of_a_plane_in_noise(generator):
    plane = torch.rand(1500, 2, generator=generator, dtype=torch.float64)
    x = plane @ torch.randn(2, 30, generator=generator, dtype=torch.float64)
    assert local_pca_dimension(x).item() == pytest.approx(2, abs=1e-12)
    noise = torch.randn(1500, 30, generator=generator, dtype=torch.float64)
    # of 50 isotropic points in 30 dimensions, nearly all directions are needed for 95 %
    assert local_pca_dimension(x + 10 * noise) > 20


def test_purity_of_classes_apart_and_mixed(generator):
    y = torch.arange(400) % 4
    x = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    assert class_purity(x + 50 * torch.nn.functional.one_hot(y, 4)[:, :3], y).item() == 1
    # independent classes: 1/4 less the point itself, 99/399; error √(p(1-p)/(10 · 400))
    assert class_purity(x, y).item() == pytest.approx(99 / 399, abs=5 * 0.007)
    with pytest.raises(ValueError, match="one integer class"):
        class_purity(x, y[:10])


# Spectra of weights


def test_exponent_of_a_pure_power_law():
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    fit = fit_tail((1 - u) ** (-1 / 1.5))  # ρ ∝ λ^-2.5 from 1 on
    assert fit.alpha == pytest.approx(2.503, abs=5e-4)
    assert fit.meaningful and fit.distance < 0.01


def test_spectrum_of_a_random_matrix_ends_at_the_marchenko_pastur_edge(generator):
    weight = 0.3 * torch.randn(400, 900, generator=generator)
    found = weight_spectrum(weight)
    assert found.edge == pytest.approx(0.09 * (20 + 30) ** 2, rel=0.02)
    # fluctuations of the largest eigenvalue are N^(-2/3) of it
    assert found.spectral_norm == pytest.approx(found.edge, rel=0.05) and found.beyond_edge <= 2
    norm = weight.double().square().sum().item()
    assert found.log_norm == pytest.approx(math.log10(norm), abs=1e-12)
    assert found.stable_rank == pytest.approx(norm / torch.linalg.matrix_norm(weight.double(), 2).item() ** 2)
    assert found.weighted_alpha == pytest.approx(found.tail.alpha * math.log10(found.spectral_norm))


def test_kernels_are_one_matrix_or_one_for_each_position(generator):
    kernel = torch.randn(8, 4, 3, 3, generator=generator)
    whole = weight_spectrum(kernel)
    torch.testing.assert_close(whole.eigenvalues, torch.linalg.svdvals(kernel.double().flatten(1)).square())
    parts = weight_spectrum(kernel, convolution="positions")
    assert len(parts) == 9
    assert sum(10**part.log_norm for part in parts) == pytest.approx(10**whole.log_norm)


def test_equal_singular_values_have_full_entropy_and_no_tail():
    found = weight_spectrum(2 * torch.eye(30))
    assert found.entropy == pytest.approx(1) and found.stable_rank == pytest.approx(30)
    assert math.isnan(found.tail.alpha) and not found.tail.meaningful

"""Collective variables: closed forms, bounds, symmetries, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from observatory.ntk import collective_variables, kernel_distance, to_matrix


def random_kernel(n: int = 12, rank: int = 30, seed: int = 0) -> Tensor:
    a = torch.randn(n, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_identity(n):
    v = collective_variables(3.7 * torch.eye(n, dtype=torch.float64))
    assert v.entropy.item() == pytest.approx(math.log(n), abs=1e-12)
    assert v.normalised_entropy.item() == pytest.approx(1.0 if n > 1 else 0.0, abs=1e-12)
    assert v.effective_rank.item() == pytest.approx(n, abs=1e-9)
    assert v.participation_ratio.item() == pytest.approx(n, abs=1e-9)
    assert (v.trace.item(), v.mean_trace.item()) == (pytest.approx(3.7 * n), pytest.approx(3.7))
    assert (v.condition_number.item(), v.numerical_rank.item()) == (pytest.approx(1.0), n)
    assert v.self_entropy.item() == pytest.approx(math.log(n), abs=1e-12)
    assert v.cosine_entropy.item() == pytest.approx(math.log(n), abs=1e-12)


def test_equicorrelated_kernel_of_the_literature():
    n, a, b = 20, 0.7, 0.3
    v = collective_variables(a * torch.eye(n, dtype=torch.float64) + b)
    assert v.entropy.item() == pytest.approx(2.5957150899, abs=1e-9)
    assert v.participation_ratio.item() == pytest.approx(7.3800738007, abs=1e-9)
    assert v.eigenvalues.tolist() == pytest.approx([a + b * n] + [a] * (n - 1), abs=1e-12)
    assert v.largest_eigenvalue.item() == pytest.approx(a + b * n, abs=1e-12)
    assert v.largest_share.item() == pytest.approx((a + b * n) / (n * (a + b)), abs=1e-12)
    assert v.condition_number.item() == pytest.approx((a + b * n) / a, rel=1e-12)
    assert v.centred_entropy.item() == pytest.approx(math.log(n - 1), abs=1e-12)  # HKH = aH


def test_rank_one():
    u = torch.arange(1.0, 7.0, dtype=torch.float64)
    v = collective_variables(torch.outer(u, u))
    assert v.entropy.item() == pytest.approx(0, abs=1e-12)
    assert v.participation_ratio.item() == pytest.approx(1)
    assert v.numerical_rank.item() == 1
    assert v.condition_number.item() == pytest.approx(1 / (6 * torch.finfo(torch.float64).eps), rel=1e-6)
    p = u / u.sum()
    assert v.self_entropy.item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-12)
    assert v.cosine_entropy.item() == pytest.approx(0, abs=1e-12)


def test_entropy_does_not_depend_on_scale_and_bounds_the_participation_ratio():
    kernel = random_kernel()
    one, other = collective_variables(kernel), collective_variables(1e6 * kernel)
    for name in ("entropy", "participation_ratio", "effective_rank", "condition_number", "cosine_entropy"):
        assert getattr(one, name).item() == pytest.approx(getattr(other, name).item(), rel=1e-12)
    assert 1 <= one.participation_ratio <= one.effective_rank <= 12


def test_order_of_the_examples_does_not_matter():
    kernel, order = random_kernel(), torch.randperm(12)
    one, other = collective_variables(kernel), collective_variables(kernel[order][:, order])
    assert one.entropy.item() == pytest.approx(other.entropy.item(), abs=1e-12)


def test_alignment_of_the_ideal_kernel():
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    ideal = (y[:, None] == y).double()
    v = collective_variables(ideal, targets=y)
    assert (v.alignment.item(), v.centred_alignment.item()) == (pytest.approx(1), pytest.approx(1))
    flat = collective_variables(torch.ones(6, 6, dtype=torch.float64) + 1e-3 * torch.eye(6), targets=y)
    assert flat.alignment.item() == pytest.approx(12 / (6 * math.sqrt(12)), rel=1e-3)  # high for no reason
    assert flat.centred_alignment.item() == pytest.approx(4 / math.sqrt(5 * 8), rel=1e-9)  # of H with HYYᵀH


def test_alignment_with_real_targets():
    y = torch.randn(8, 2, dtype=torch.float64)
    kernel = y @ y.T
    assert collective_variables(kernel, targets=y).alignment.item() == pytest.approx(1)
    h = torch.eye(8, dtype=torch.float64) - 1 / 8
    k, t = h @ random_kernel(8) @ h, h @ kernel @ h
    expected = (k * t).sum() / k.norm() / t.norm()
    got = collective_variables(random_kernel(8), targets=y).centred_alignment
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)


def test_alignment_with_classes_at_several_sites():
    """Against one-hot targets written out, (n, T·C); padding is no class."""
    y = torch.randint(3, (8, 5))
    y[2, 3:] = y[5, 4:] = -100
    hot = (y[..., None] == torch.arange(3)).double().flatten(1)
    one = collective_variables(random_kernel(8), targets=y)
    other = collective_variables(random_kernel(8), targets=hot)
    assert one.alignment.item() == pytest.approx(other.alignment.item(), rel=1e-12)
    assert one.centred_alignment.item() == pytest.approx(other.centred_alignment.item(), rel=1e-12)


def test_distance_and_velocity():
    one, other = random_kernel(seed=1), random_kernel(seed=2)
    expected = 1 - (one * other).sum() / one.norm() / other.norm()
    v = collective_variables(one, reference=other, previous=(other, 5))
    assert v.distance.item() == pytest.approx(expected.item(), rel=1e-12)
    assert v.velocity.item() == pytest.approx(expected.item() / 5, rel=1e-12)
    assert collective_variables(one, previous=other).velocity.item() == pytest.approx(expected.item())
    assert kernel_distance(one, 7 * one).item() == pytest.approx(0, abs=1e-12)
    empty = collective_variables(one)
    assert (empty.alignment, empty.centred_alignment, empty.distance, empty.velocity) == (None,) * 4


def test_batches_and_kernels_that_are_not_finite():
    bad = random_kernel()
    bad[3, 4] = bad[4, 3] = torch.nan
    infinite = random_kernel()
    infinite[2, 2] = torch.inf
    v = collective_variables(torch.stack([random_kernel(), bad, infinite]))
    assert torch.equal(v.entropy.isnan(), torch.tensor([False, True, True]))
    assert torch.equal(v.eigenvalues.isnan().all(-1), torch.tensor([False, True, True]))
    assert v.numerical_rank.tolist() == [12, 0, 0]


def test_example_without_gradient_gives_a_zero_row_of_cosines():
    kernel = random_kernel()
    kernel[3], kernel[:, 3] = 0, 0
    v = collective_variables(kernel)
    assert torch.isfinite(v.cosine_entropy) and torch.isfinite(v.self_entropy)


def test_full_kernel_becomes_a_matrix_example_major():
    kernel = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    assert to_matrix(kernel)[1 * 3 + 2, 3 * 5 + 4] == kernel[1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"shape \(N, C, M, C\), got \(2, 3\)"):
        to_matrix(torch.zeros(2, 3))


@pytest.mark.parametrize(
    "matrix, message",
    [
        (torch.zeros(3, 4), r"shape \(\.\.\., n, n\), got \(3, 4\).*to_matrix"),
        (torch.zeros(0, 0), r"got \(0, 0\)"),
        (torch.rand(4, 2, 4, 2), r"\(N, C, N, C\) = \(4, 2, 4, 2\).*to_matrix\(kernel\)"),
        (torch.rand(3, 3, 3, 3), r"may be a full kernel.*to_matrix"),
        (torch.triu(torch.ones(4, 4)), r"not symmetric: entries differ .* by 1; .*to_matrix"),
        (torch.diag(torch.tensor([1.0, 1.0, -0.1])), r"not positive semi-definite: .* from -0\.1 to 1"),
    ],
)
def test_what_is_no_kernel_matrix_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        collective_variables(matrix)


def test_targets_must_be_one_per_row():
    with pytest.raises(ValueError, match="the kernel has 12 rows and there are 5 targets"):
        collective_variables(random_kernel(), targets=torch.zeros(5))


def test_infinite_width_kernel_is_approached_as_one_over_root_width():
    """f = Σ a relu(w·x)/√m: the arc-cosine kernels of Cho and Saul (2009)."""
    from torch import nn

    from observatory.ntk import empirical_ntk

    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    norms = x.norm(dim=1)
    cosine = (x @ x.T / norms[:, None] / norms).clamp(-1, 1)
    phi = cosine.arccos()
    limit = x @ x.T * (math.pi - phi) / (2 * math.pi)
    limit += norms[:, None] * norms / (2 * math.pi) * (phi.sin() + (math.pi - phi) * phi.cos())

    def error(m: int, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        net = nn.Sequential(nn.Linear(5, m, bias=False), nn.ReLU(), nn.Linear(m, 1, bias=False)).double()
        for p in net.parameters():
            p.data = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        scaled = empirical_ntk(net, x, kind="trace") / m
        return ((scaled - limit).norm() / limit.norm()).item()

    errors = [math.sqrt(sum(error(m, s) ** 2 for s in range(8)) / 8) for m in (64, 1024, 16384)]
    slopes = [math.log(b / a) / math.log(16) for a, b in pairwise(errors)]
    assert all(-0.75 < slope < -0.3 for slope in slopes)
    assert errors[-1] < 0.03


def test_sum_of_logits_approaches_the_mean_kernel_with_width():
    """‖K_sum - K_trace/C‖/‖·‖ ∝ width^(-1/2) for 10-w-w-5 ReLU networks (Mohamadi et al. 2023)."""
    from torch import nn

    from observatory.ntk import empirical_ntk

    x = torch.randn(10, 10, dtype=torch.float64)

    def deviation(w: int, seed: int) -> float:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(10, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 5)).double()
        mean = empirical_ntk(net, x, kind="mean")
        return ((empirical_ntk(net, x, kind="sum_of_logits") - mean).norm() / mean.norm()).item()

    narrow, wide = (sum(deviation(w, s) for s in range(6)) / 6 for w in (64, 512))
    assert math.log(wide / narrow) / math.log(8) == pytest.approx(-0.5, abs=0.2)
    assert 0.05 < narrow < 0.2 and 0.015 < wide < 0.06

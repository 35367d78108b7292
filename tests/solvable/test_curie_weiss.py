"""The Curie-Weiss magnet against enumeration, and its Fisher information as a signal of the transition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from observatory.solvable.curie_weiss import (
    fisher_information,
    fisher_peak,
    log_partition,
    log_probabilities,
    magnetisations,
    sample_magnetisations,
)


@pytest.mark.parametrize("beta", [0.0, 0.7, 2.0])
def test_partition_sum_counts_all_configurations(beta, spins=9):
    configurations = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=spins)), dtype=torch.float64)
    energies = -configurations.sum(1).square() / (2 * spins)
    z = log_partition(torch.tensor(beta, dtype=torch.float64), spins=spins)
    assert z.item() == pytest.approx(torch.logsumexp(-beta * energies, 0).item(), rel=1e-12)
    p = (-beta * energies).softmax(0)
    variance = (p * energies.square()).sum() - (p * energies).sum().square()
    assert fisher_information(torch.tensor(beta, dtype=torch.float64), spins=spins).item() == pytest.approx(
        variance.item(), rel=1e-10
    )


def test_fisher_information_is_the_curvature_of_the_free_energy():
    beta = torch.tensor([0.3, 1.0, 1.4], dtype=torch.float64)
    curvature = torch.func.vmap(torch.func.grad(torch.func.grad(lambda b: log_partition(b, spins=200))))(beta)
    torch.testing.assert_close(fisher_information(beta, spins=200), curvature, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("spins", "beta", "height"), [(100, 1.181, 0.861), (1000, 1.065, 1.320), (10000, 1.022, 1.538)]
)
def test_peak_moves_to_the_transition(spins, beta, height):
    peak = fisher_peak(spins=spins)
    assert peak.beta.item() == pytest.approx(beta, abs=5e-4)  # the digits given
    assert peak.height.item() == pytest.approx(height, abs=6e-4)


def test_peak_of_three_spins():
    # two levels, M² = 9 and 1: F = (4/3)² p(1 - p), largest at p = 1/2, that is e^{4β/3} = 3
    peak = fisher_peak(spins=3)
    assert peak.beta.item() == pytest.approx(0.75 * math.log(3), abs=1e-6)
    assert peak.height.item() == pytest.approx((4 / 3) ** 2 / 4 / 3, rel=1e-12)


def test_free_magnet_and_frozen_magnet():
    # β = 0: Var(M²/2N) of N free spins is (1 - 1/N)/2; β → ∞: nothing fluctuates
    found = fisher_information(torch.tensor([0.0, 50.0]), spins=40)
    assert found[0].item() == pytest.approx((1 - 1 / 40) / 2, rel=1e-12)
    assert found[1].item() < 1e-12


def test_samples_follow_the_distribution(generator):
    p = log_probabilities(torch.tensor(1.1), spins=10).exp()
    samples = sample_magnetisations(torch.tensor(1.1), 40_000, spins=10, generator=generator)
    share = (samples[:, None] == magnetisations(10)).double().mean(0)
    error = (p * (1 - p) / 40_000).sqrt()
    assert ((share - p).abs() < 5 * error).all()


def test_too_few_spins():
    with pytest.raises(ValueError, match="at least one spin"):
        magnetisations(0)
    with pytest.raises(ValueError, match="has no peak"):
        fisher_peak(spins=1)

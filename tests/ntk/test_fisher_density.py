"""Fisher information of densities from their samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from observatory.ntk.fisher_density import fisher_trace_of_density
from observatory.solvable.curie_weiss import (
    fisher_information,
    fisher_peak,
    log_partition,
    sample_magnetisations,
)


def test_normal_distribution(generator):
    # θ = (μ, ln σ): F = diag(1/σ², 2)
    theta = {"mean": torch.tensor(0.4, dtype=torch.float64), "log": torch.tensor(-0.7, dtype=torch.float64)}

    def log_prob(at: dict[str, Tensor], x: Tensor) -> Tensor:
        return -0.5 * ((x - at["mean"]) * (-at["log"]).exp()).square() - at["log"]

    x = theta["mean"] + theta["log"].exp() * torch.randn(20_000, dtype=torch.float64, generator=generator)
    found = fisher_trace_of_density(log_prob, theta, x)
    expected = math.exp(1.4) + 2
    assert abs(found.mean_square - expected) < 5 * found.mean_square_error
    assert abs(found.variance - expected) < 5 * found.variance_error
    assert found.mean_score < 5 * math.sqrt(expected / 20_000)
    chunked = fisher_trace_of_density(log_prob, theta, x, chunk_size=3000)
    assert chunked.variance.item() == pytest.approx(found.variance.item(), rel=1e-12)


@pytest.mark.parametrize("spins", [100, 1000])
def test_magnet_at_its_peak(spins, generator):
    peak = fisher_peak(spins=spins)
    samples = sample_magnetisations(peak.beta, 40_000, spins=spins, generator=generator)

    def energy_only(beta: Tensor, m: Tensor) -> Tensor:
        return beta * m.square() / (2 * spins)

    def normalised(beta: Tensor, m: Tensor) -> Tensor:
        return energy_only(beta, m) - log_partition(beta, spins=spins)

    exact = fisher_information(peak.beta, spins=spins)
    known = fisher_trace_of_density(normalised, peak.beta, samples)
    assert abs(known.mean_square - exact) < 5 * known.mean_square_error
    assert abs(known.variance - exact) < 5 * known.variance_error
    unknown = fisher_trace_of_density(energy_only, peak.beta, samples)
    assert unknown.variance.item() == pytest.approx(known.variance.item(), rel=1e-9)
    assert unknown.mean_score > 100 * known.mean_score  # which shows that ln Z is missing


def test_samples_found_on_both_sides_of_the_transition_peak_between(generator):
    betas = torch.tensor([0.6, 1.065, 1.6], dtype=torch.float64)
    found = [
        fisher_trace_of_density(
            lambda beta, m: beta * m.square() / 2000,
            beta,
            sample_magnetisations(beta, 5000, spins=1000, generator=generator),
        ).variance
        / 1000
        for beta in betas
    ]
    assert found[1] > 1.2 > 3 * found[0] and found[1] > 3 * found[2]


def test_refusals():
    theta = torch.tensor(1.0)
    with pytest.raises(ValueError, match="at least two samples"):
        fisher_trace_of_density(lambda t, x: t * x, theta, torch.ones(1))
    with pytest.raises(ValueError, match="inside the support"):
        fisher_trace_of_density(lambda t, x: (t * x).log(), theta, torch.tensor([0.0, -1.0]))

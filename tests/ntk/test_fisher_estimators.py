"""Estimators of Fisher traces: unbiased, with the variance of the table and honest error bars; loaders."""

from __future__ import annotations

import pytest
import torch
from cases import jacobian
from fisher_by_definition import NAMES, explicit, small
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.looking import ModelFunction
from observatory.ntk.fisher import fisher_trace
from observatory.ntk.fisher_estimators import FisherDirections, whole_batch_values
from observatory.ntk.fisher_likelihoods import output_likelihood
from observatory.ntk.norms import squared_gradient_norms


def gram(net: nn.Module, x: Tensor) -> Tensor:
    """A = L_iᵀ Θ_ij L_j, (N, C, N, C), from the explicit Jacobian."""
    f = ModelFunction.of(net)(x).detach()
    p = f.softmax(-1)
    root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
    rows = torch.einsum("icp,ica->iap", jacobian(net, x), root)
    return torch.einsum("iap,jbp->iajb", rows, rows)


def draws_of(estimator: str, net: nn.Module, x: Tensor, draws: int) -> Tensor:
    """Independent estimates of Tr F."""
    whom = lambda outputs: output_likelihood("categorical", None, outputs)  # noqa: E731
    generator = torch.Generator().manual_seed(3)
    function = ModelFunction.of(net)
    if estimator in ("summed", "hutchinson"):
        return whole_batch_values(estimator, function, x, whom, None, draws, generator)[0] / len(x)
    parts = [FisherDirections(estimator, whom, None, 250, generator) for _ in range(draws // 250)]
    return torch.cat([squared_gradient_norms(function, x, part).mean(1) for part in parts])


@pytest.mark.parametrize("estimator", ["sampled", "rademacher", "summed", "hutchinson"])
def test_estimators_are_unbiased_with_the_variance_of_the_table(estimator, n=50, draws=2000):
    net, x, _ = small(n)
    a, p = gram(net, x), net(x).softmax(-1).detach()
    blocks = a[range(n), :, range(n), :]
    trace = blocks.diagonal(dim1=1, dim2=2).sum() / n
    fisher = explicit(net, x, "categorical")
    labels = torch.eye(4, dtype=torch.float64) - p[:, None, :]  # (i, y, c): score of every label
    n_iy = torch.einsum("iyc,icp->iyp", labels, jacobian(net, x)).square().sum(-1)
    off = blocks.square().sum() - blocks.diagonal(dim1=1, dim2=2).square().sum()
    matrix = a.reshape(4 * n, 4 * n)
    variance = {
        "sampled": ((p * n_iy.square()).sum(1) - (p * n_iy).sum(1).square()).sum() / n**2,
        "rademacher": 2 * off / n**2,
        "summed": 2 * (matrix.square().sum() - matrix.diagonal().square().sum()) / n**2,
        "hutchinson": 2 * (fisher.square().sum() - fisher.diagonal().square().sum()),
    }[estimator]
    values = draws_of(estimator, net, x, draws)
    assert abs(values.mean() - trace) < 4 * (variance / draws).sqrt()
    assert values.var().item() == pytest.approx(variance.item(), rel=0.1 if estimator != "summed" else 0.2)


@pytest.mark.parametrize("estimator", ["sampled", "rademacher", "summed", "hutchinson"])
def test_standard_errors_cover_the_exact_value(estimator):
    net, x, _ = small()
    exact = fisher_trace(net, x, likelihood="categorical").value
    draws = 2 if estimator in ("sampled", "rademacher") else 40
    inside = 0
    for seed in range(200):
        found = fisher_trace(
            net, x, likelihood="categorical", estimator=estimator, draws=draws,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        inside += bool(abs(found.value - exact) < 2 * found.standard_error)
    assert 180 <= inside <= 198


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_sampling_errors_cover_the_value_of_the_population(estimator):
    net, everything, _ = small(20_000)
    exact = fisher_trace(net, everything, likelihood="categorical").value
    inside = 0
    for seed in range(200):
        found = fisher_trace(
            net, everything[100 * seed : 100 * seed + 100], likelihood="categorical", estimator=estimator,
            draws=1, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        inside += bool(abs(found.value - exact) < 2 * found.sampling_error)
    assert 180 <= inside <= 198


def test_many_outputs_are_sampled_by_default():
    net, x = nn.Linear(5, 40).double(), torch.randn(30, 5, dtype=torch.float64)
    found, exact = (fisher_trace(net, x, likelihood="categorical", estimator=e) for e in ("auto", "exact"))
    assert found.standard_error > 0 and exact.standard_error == 0
    assert abs(found.value - exact.value) < 5 * found.standard_error


@pytest.mark.parametrize("name", NAMES)
def test_sampled_labels_follow_every_likelihood(name):
    net, x, _ = small(400)
    exact = fisher_trace(net, x, likelihood=name, sigma2=0.5)
    found = fisher_trace(net, x, likelihood=name, sigma2=0.5, estimator="sampled", draws=4)
    assert abs(found.value - exact.value) < 5 * found.standard_error


def test_same_generator_same_estimate_and_no_stream_moves():
    net, x, _ = small()
    before = torch.get_rng_state()
    one, two = (fisher_trace(net, x, likelihood="categorical", estimator="sampled") for _ in range(2))
    assert one.value == two.value and torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())


# Data sets


def test_loader_is_the_sum_of_its_batches():
    net, x, y = small(70)
    loader = DataLoader(TensorDataset(x, y), 16, shuffle=True)
    before = torch.get_rng_state()
    for kind in ("true", "empirical"):
        streamed, whole = fisher_trace(net, loader, kind=kind), fisher_trace(net, x, y, kind=kind)
        assert streamed.examples == 70
        assert streamed.value.item() == pytest.approx(whole.value.item(), rel=1e-12)
        assert streamed.sampling_error.item() == pytest.approx(whole.sampling_error.item(), rel=1e-9)
    assert torch.equal(before, torch.get_rng_state())


def test_first_examples_of_a_loader():
    net, x, y = small(70)
    streamed = fisher_trace(net, DataLoader(TensorDataset(x, y), 16), max_examples=40)
    assert streamed.examples == 40
    assert streamed.value.item() == pytest.approx(fisher_trace(net, x[:40], y[:40]).value.item(), rel=1e-12)
    named = DataLoader([{"image": a, "label": b} for a, b in zip(x, y, strict=True)], 16)
    found = fisher_trace(net, named, inputs=lambda b: b["image"], targets=lambda b: b["label"])
    assert found.value.item() == pytest.approx(fisher_trace(net, x, y).value.item(), rel=1e-12)


# The spectrum

"""Fluctuations of deep linear networks: gauge modes, coupled layers, balancedness."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from observatory.solvable.linear_network import (
    TwoLayerEnsemble,
    balancedness,
    balancedness_after_step,
    gauge_drift,
    range_projector,
    scalar_gauge_rate,
    stationary_gauge,
    two_layer_variances,
)

INPUTS, HIDDEN, OUTPUTS = 8, 3, 4
MODES = torch.tensor([3, 1, 0.4], dtype=torch.float64)
TABLE = [[0.667, 0.400, 0.211], [0.857, 0.667, 0.444], [0.938, 0.833, 0.667], [1, 1, 1]]


def layers_in_the_gauge() -> tuple[torch.Tensor, torch.Tensor]:
    """W₁ and W₂ in their own singular bases."""
    s1, s2 = stationary_gauge(MODES, inputs=INPUTS, outputs=OUTPUTS)
    first, second = torch.zeros(HIDDEN, INPUTS).double(), torch.zeros(OUTPUTS, HIDDEN).double()
    first[:, :HIDDEN], second[:HIDDEN] = torch.diag(s1), torch.diag(s2)
    return first, second


def ensemble(replicas: int, frozen: bool) -> TwoLayerEnsemble:
    first, second = layers_in_the_gauge()
    return TwoLayerEnsemble(
        first.repeat(replicas, 1, 1), second.repeat(replicas, 1, 1), second @ first,
        learning_rate=0.005, batch_size=20, label_noise=1.0, frozen_first=frozen,
    )  # fmt: skip


def second_layer_variances(replicas: int, steps: int, discard: int, frozen: bool, generator) -> torch.Tensor:
    """Mean square of δW₂ about its mean over the ensemble, in units of ηs²/(2S)."""
    runs = ensemble(replicas, frozen)
    start = runs.second[0].clone()
    total = torch.zeros(OUTPUTS, HIDDEN).double()
    for step in range(steps):
        runs.advance(generator)
        if step >= discard:
            total += (runs.second - start).square().mean(0)
    return total / (steps - discard) / (0.005 / 40)


def test_second_layer_table_of_the_stationary_gauge():
    s1, s2 = stationary_gauge(MODES, inputs=INPUTS, outputs=OUTPUTS)
    seen = two_layer_variances(s1, s2, inputs=INPUTS, outputs=OUTPUTS)
    assert torch.allclose(seen.second, torch.tensor(TABLE).double(), atol=5e-4)
    assert (s1 * s2).tolist() == pytest.approx(MODES.tolist())


def test_closed_form_is_batched():
    s1, s2 = stationary_gauge(torch.stack([MODES, 2 * MODES]), inputs=INPUTS, outputs=OUTPUTS)
    seen = two_layer_variances(s1, s2, inputs=INPUTS, outputs=OUTPUTS)
    assert seen.second.shape == (2, OUTPUTS, HIDDEN) and seen.first.shape == (2, HIDDEN, INPUTS)
    assert torch.allclose(seen.second[0], seen.second[1])  # ratios of singular values alone


def test_projector_has_the_closed_form_on_its_diagonal_and_leaves_out_the_gauge_modes():
    first, second = layers_in_the_gauge()
    s1, s2 = stationary_gauge(MODES, inputs=INPUTS, outputs=OUTPUTS)
    projector = range_projector([first, second])
    expected = two_layer_variances(s1, s2, inputs=INPUTS, outputs=OUTPUTS)
    diagonal = torch.cat([expected.first.flatten(), expected.second.flatten()])
    assert torch.allclose(projector.diagonal(), diagonal, atol=1e-12)
    assert projector.trace().item() == pytest.approx(first.numel() + second.numel() - HIDDEN**2, abs=1e-10)
    assert torch.allclose(projector @ projector, projector, atol=1e-12)


@pytest.mark.parametrize("widths", [(5, 4, 3), (6, 3, 3, 5), (4, 2, 3, 2, 4)])
def test_projector_of_any_depth_matches_the_jacobian(widths, generator):
    layers = [
        torch.randn(n, m, generator=generator, dtype=torch.float64) for m, n in itertools.pairwise(widths)
    ]

    def product(*weights):
        end = weights[0]
        for weight in weights[1:]:
            end = weight @ end
        return end

    jacobians = torch.autograd.functional.jacobian(product, tuple(layers))
    jacobian = torch.cat([j.flatten(2).flatten(0, 1) for j in jacobians], dim=1)
    expected = torch.linalg.pinv(jacobian, rtol=1e-10) @ jacobian
    assert torch.allclose(range_projector(layers), expected, atol=1e-10)


def test_wide_hidden_layer_is_refused():
    with pytest.raises(ValueError, match=r"hidden layer \(5\) must not be wider"):
        two_layer_variances(torch.ones(5), torch.ones(5), inputs=4, outputs=9)


@pytest.mark.slow
def test_second_layer_of_an_ensemble_has_the_variances_of_the_table(generator):
    seen = second_layer_variances(1000, 6000, 1500, False, generator)
    # slowest mode: s₁² = 0.57 decorrelates δ² in 1/(ηs₁²) = 350 steps: √(2/(1000 · 4500/350)) = 1.2 %
    assert torch.allclose(seen, torch.tensor(TABLE).double(), rtol=0.05)


@pytest.mark.slow
def test_second_layer_above_a_frozen_first_one_fluctuates_isotropically(generator):
    seen = second_layer_variances(1000, 6000, 1500, True, generator)
    assert torch.allclose(seen, torch.ones(OUTPUTS, HIDDEN).double(), rtol=0.05)


def test_second_layer_of_a_short_run_already_tells_the_rows_apart(generator):
    seen = second_layer_variances(250, 1300, 900, False, generator)
    assert torch.allclose(seen, torch.tensor(TABLE).double(), rtol=0.25)
    assert (seen[0] < 0.85 * seen[3]).all()


def test_gauge_drift_vanishes_in_the_stationary_gauge():
    first, second = layers_in_the_gauge()
    setting = {"learning_rate": 0.1, "batch_size": 20, "label_noise": 1.0}
    assert gauge_drift(first, second, **setting).norm() < 1e-15
    assert (
        gauge_drift(2 * first, second, **setting).diagonal().min() > 0
    )  # too heavy a first layer: W₁ shrinks


def test_gauge_drift_is_the_mean_of_exact_steps(generator):
    first, second = layers_in_the_gauge()
    runs = TwoLayerEnsemble(
        (2 * first).repeat(40_000, 1, 1), (second / 2).repeat(40_000, 1, 1), second @ first,
        learning_rate=0.1, batch_size=20, label_noise=1.0,
    )  # fmt: skip
    before = balancedness(runs.first, runs.second).mean(0)
    runs.advance(generator)
    change = balancedness(runs.first, runs.second).mean(0) - before
    expected = gauge_drift(2 * first, second / 2, learning_rate=0.1, batch_size=20, label_noise=1.0)
    assert torch.allclose(change, expected, rtol=0.05, atol=0.01 * float(expected.abs().max()))


@pytest.mark.parametrize("steps", [500, pytest.param(2000, marks=pytest.mark.slow)])
def test_scalar_network_forgets_its_gauge(steps, generator):
    u, v, replicas = 1.6, 0.7, 4000
    one = torch.ones(replicas, 1, 1).double()
    runs = TwoLayerEnsemble(
        v * one, u * one, torch.tensor([[1.12]]).double(), learning_rate=0.1, batch_size=20, label_noise=1.0
    )
    left = {}
    for step in range(1, steps + 1):
        runs.advance(generator)
        if step in (500, 1000, 2000):
            left[step] = float(balancedness(runs.first, runs.second).mean()) / (u * u - v * v)
    expected = {500: 0.744, 1000: 0.556, 2000: 0.312}
    assert left == pytest.approx({step: expected[step] for step in left}, abs=0.015)
    rate = scalar_gauge_rate(u, v, learning_rate=0.1, batch_size=20, label_noise=1.0)
    # over the first 500 steps u² + v² falls by a few per cent; the ensemble knows `left` to 0.005
    assert -math.log(left[500]) / 500 == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_balancedness_changes_exactly_as_predicted_at_every_step(depth, decay, generator):
    net = torch.nn.Sequential(*(torch.nn.Linear(6, 6, bias=False).double() for _ in range(depth)))
    eta = 0.03
    optimizer = torch.optim.SGD(net.parameters(), lr=eta, weight_decay=decay)
    for _ in range(20):
        x, y = torch.randn(2, 10, 6, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        (0.5 * (net(x) - y).square().sum(-1).mean()).backward()
        weights = [layer.weight.detach().clone() for layer in net]
        gradients = [layer.weight.grad.clone() for layer in net]
        optimizer.step()
        for k in range(depth - 1):
            expected = balancedness_after_step(
                weights[k],
                weights[k + 1],
                gradients[k],
                gradients[k + 1],
                learning_rate=eta,
                weight_decay=decay,
            )
            seen = balancedness(net[k].weight.detach(), net[k + 1].weight.detach())
            assert (seen - expected).norm() <= 1e-13 * weights[k].norm() ** 2

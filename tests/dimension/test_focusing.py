"""Paths, shares and strengths of weights, against enumeration and the laws they obey."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from observatory.dimension import (
    effective_nodes_at_initialisation,
    in_strengths,
    lorenz_curve,
    node_differences,
    node_shares,
    out_strengths,
    path_weights,
    weight_strengths,
)


def random_strengths(widths: list[int], generator: torch.Generator, scale: float = 1.0) -> list[Tensor]:
    return [
        scale * torch.rand(b, a, dtype=torch.float64, generator=generator).square()
        for a, b in itertools.pairwise(widths)
    ]


# Shares


@pytest.mark.parametrize("n", [2, 7, 64])
def test_equal_shares_are_not_focused_and_one_node_is_all_there_is(n):
    equal, single = node_shares(torch.full((n,), 3.0)), node_shares(torch.eye(n)[n // 2])
    assert equal.focusing == 0 and equal.effective_nodes.item() == pytest.approx(n, rel=1e-12)
    assert equal.entropy_nodes.item() == pytest.approx(n, rel=1e-12)
    assert abs(equal.gini) < 1e-15 and equal.dead == 0
    assert single.focusing == 1 and single.effective_nodes == 1 and single.inverse_participation == 1
    assert single.gini.item() == pytest.approx(1 - 1 / n, rel=1e-12)
    assert single.nodes_for_90.item() == pytest.approx(1 / n) and single.dead == n - 1


def test_shares_of_a_geometric_sequence():
    n, r = 40, 0.7
    shares = node_shares(r ** torch.arange(n, dtype=torch.float64))
    norm = (1 - r) / (1 - r**n)
    square = norm**2 * (1 - r ** (2 * n)) / (1 - r**2)
    assert shares.effective_nodes.item() == pytest.approx(1 / square, rel=1e-12)
    assert shares.focusing.item() == pytest.approx((n * square - 1) / (n - 1), rel=1e-12)
    carried = math.ceil(math.log(1 - 0.9 * (1 - r**n)) / math.log(r))
    assert shares.nodes_for_90.item() == pytest.approx(carried / n)
    gini = sum(abs(a - b) for a in shares.shares for b in shares.shares).item() / (2 * n)
    assert shares.gini.item() == pytest.approx(gini, rel=1e-12)  # half the mean absolute difference


def test_dead_nodes_count_as_nodes():
    shares = node_shares(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert shares.effective_nodes == 2 and shares.dead == 2
    assert shares.focusing.item() == pytest.approx(1 / 3)  # (4/2 - 1)/(4 - 1)


def test_lorenz_curve_of_equal_and_of_linear_shares():
    at = torch.linspace(0, 1, 33, dtype=torch.float64)
    torch.testing.assert_close(lorenz_curve(torch.full((320,), 1 / 320, dtype=torch.float64)), at)
    p = torch.arange(320, 0, -1, dtype=torch.float64)
    # of shares ∝ n - k: the strongest x n carry x (2 - x) up to 1/n
    torch.testing.assert_close(lorenz_curve(p / p.sum()), at * (2 - at), atol=1 / 320, rtol=0)


def test_participation_of_gaussian_weights_is_that_of_chi_squares(generator):
    n, m = 512, 256
    drawn = torch.randn(20, n, m, generator=generator, dtype=torch.float64)
    found = node_shares(drawn.square().sum(-1)).effective_nodes
    expected = effective_nodes_at_initialisation(n, m)
    assert expected == pytest.approx(512 / (1 + 2 / 256))
    assert abs(found[0] - expected) < 2
    # Σp² - (1 + 2/m)/n has a relative spread of about √(8/n)/m: 0.0005, 0.25 nodes, and a fifth for the mean
    assert abs(found.mean() - expected) < 0.3


# Paths


@pytest.mark.parametrize("q", [1, 2])
def test_path_shares_are_those_of_all_paths_enumerated(q, generator):
    widths = [3, 4, 5, 2]
    weights = [torch.randn(b, a, generator=generator) for a, b in itertools.pairwise(widths)]
    strengths = [weight_strengths(w, q=q) for w in weights]
    found = path_weights(strengths)
    through = [torch.zeros(n, dtype=torch.float64) for n in widths]
    edges = [torch.zeros_like(a) for a in strengths]
    for path in itertools.product(*map(range, widths)):
        weight = math.prod(
            float(a[j, i]) for a, (i, j) in zip(strengths, itertools.pairwise(path), strict=True)
        )
        for layer, node in enumerate(path):
            through[layer][node] += weight
        for layer, (i, j) in enumerate(itertools.pairwise(path)):
            edges[layer][j, i] += weight
    total = through[0].sum()
    for ours, theirs in zip(found.nodes, through, strict=True):
        torch.testing.assert_close(ours.shares, theirs / total, rtol=1e-12, atol=0)
    for one, other in zip(found.edges, edges, strict=True):
        torch.testing.assert_close(one, other / total, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.log_total.exp(), total.expand(4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_total_is_the_same_through_every_one_of_a_hundred_layers(scale, generator):
    strengths = random_strengths([30] * 101, generator, scale)
    naive = torch.ones(30, dtype=torch.float64)
    for a in strengths:
        naive = a @ naive
    assert scale == 1 or not 0 < naive.sum() < torch.inf  # 10^(±600)
    total = path_weights(strengths).log_total
    assert (total - total[0]).abs().max() < 1e-12  # ln Φ ~ 10³ itself is rounded to 2e-13


def test_total_is_the_squared_path_norm_of_ones(generator):
    weights = [
        torch.randn(b, a, dtype=torch.float64, generator=generator) for a, b in [(6, 9), (9, 8), (8, 3)]
    ]
    signal = torch.ones(6, dtype=torch.float64)
    for w in weights:
        signal = w.square() @ signal
    found = path_weights([weight_strengths(w) for w in weights]).log_total[0]
    assert found.item() == pytest.approx(signal.sum().log().item(), rel=1e-12)


def test_importance_of_inputs_and_one_output_select_paths(generator):
    strengths = random_strengths([4, 5, 3], generator)
    inputs, outputs = torch.tensor([0.0, 2.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    found = path_weights(strengths, inputs=inputs, outputs=outputs)
    expected = strengths[1][2] * strengths[0][:, 1]
    torch.testing.assert_close(found.nodes[1].shares, expected / expected.sum())
    assert found.nodes[0].shares.tolist() == [0, 1, 0, 0]


def test_residual_block_is_the_identity_plus_its_paths(generator):
    first, inner, last = random_strengths([5, 6, 6, 4], generator)
    found = path_weights([first, inner, last], sources=[[0], [1], [1, 2]])
    skipped = path_weights([first, torch.eye(6, dtype=torch.float64) + inner, last])
    assert found.log_total[0].item() == pytest.approx(skipped.log_total[0].item(), rel=1e-12)
    torch.testing.assert_close(found.nodes[1].shares, skipped.nodes[1].shares)
    assert found.log_total[2] < found.log_total[0]  # some paths skip the block


def test_strengths_of_grouped_convolution_are_block_diagonal(generator):
    weight = torch.randn(6, 2, 3, 3, generator=generator)
    a = weight_strengths(weight, groups=3)
    assert a.shape == (6, 6)
    for group in range(3):
        rows, columns = slice(2 * group, 2 * group + 2), slice(2 * group, 2 * group + 2)
        torch.testing.assert_close(a[rows, columns], weight[rows].double().square().sum((2, 3)))
        a[rows, columns] = 0
    assert not a.any()
    torch.testing.assert_close(in_strengths(weight_strengths(weight, q=1)).sum(), weight.double().abs().sum())


# What gradient flow conserves


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_difference_of_strengths_changes_by_the_square_of_the_step(decay, generator):
    def layer(fan_in: int, fan_out: int) -> nn.Parameter:
        return nn.Parameter(
            torch.randn(fan_out, fan_in, dtype=torch.float64, generator=generator) / fan_in**0.5
        )

    w, v, u = layer(5, 8), layer(8, 7), layer(7, 2)
    x, y = torch.randn(20, 5, generator=generator).double(), torch.randn(20, 2, generator=generator).double()
    eta = 0.1
    before = [node_differences(w, v), node_differences(v, u)]
    hidden = torch.relu(torch.relu(x @ w.T) @ v.T)
    (hidden @ u.T - y).square().mean().backward()
    torch.optim.SGD([w, v, u], eta, weight_decay=decay).step()
    gradients = [p.grad for p in (w, v, u)]
    after = [node_differences(w, v), node_differences(v, u)]
    for k in range(2):
        step = node_differences(gradients[k], gradients[k + 1])
        expected = (1 - eta * decay) ** 2 * before[k] + eta**2 * step
        torch.testing.assert_close(after[k], expected, rtol=0, atol=1e-12)
        assert (after[k] - before[k]).abs().max() > 1e-6


def test_bias_counts_as_a_weight_that_comes_in(generator):
    w, v, b = torch.randn(4, 3), torch.randn(2, 4), torch.randn(4)
    expected = w.double().square().sum(1) + b.double().square() - v.double().square().sum(0)
    torch.testing.assert_close(node_differences(w, v, b), expected)
    torch.testing.assert_close(out_strengths(weight_strengths(v)), v.double().square().sum(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: node_shares(torch.tensor([1.0, -1.0])), "must not be negative"),
        (lambda: node_shares(torch.zeros(3, 0)), "expected strengths of nodes"),
        (lambda: weight_strengths(torch.ones(3)), "expected a weight"),
        (lambda: weight_strengths(torch.ones(3, 3), q=3), "q must be 1 or 2"),
        (lambda: path_weights([]), "expected matrices"),
        (lambda: path_weights([torch.ones(2, 3), torch.ones(2, 3)]), "layer 2 takes 3 nodes but is fed 2"),
        (lambda: path_weights([torch.ones(2, 3)], sources=[[1]]), "layer 1 cannot be fed by"),
        (lambda: path_weights([torch.ones(2, 3)], inputs=torch.ones(2)), "importance of 3 nodes"),
        (lambda: node_differences(torch.ones(3, 2), torch.ones(2, 4)), "3 nodes are reached and 4 are left"),
        (lambda: effective_nodes_at_initialisation(0, 3), "at least one node"),
    ],
)
def test_complaints_say_what_was_given(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shares_of_nothing_are_not_defined():
    for strength in (torch.zeros(4), torch.full((4,), torch.nan)):
        shares = node_shares(strength)
        assert shares.focusing.isnan() and shares.nodes_for_90.isnan()

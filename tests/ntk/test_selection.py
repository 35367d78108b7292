"""Data chosen by novelty, and learning rates that follow the kernel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from observatory.ntk.rates import trace_controlled_learning_rate
from observatory.ntk.selection import select_by_novelty


def networks() -> tuple[nn.Module, nn.Module]:
    return tuple(nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 4)) for _ in range(2))


def test_clusters_are_all_visited():
    corners = torch.tensor([[4.0, 0], [-4, 0], [0, 4], [0, -4]])
    pool = corners.repeat_interleave(50, 0) + 0.05 * torch.randn(200, 2)
    target, predictor = networks()
    found = select_by_novelty(pool, 4, target=target, predictor=predictor, steps=300, first=0)
    assert sorted((found.indices // 50).tolist()) == [0, 1, 2, 3]
    assert found.novelty[0].isnan() and (found.novelty[1:] > 0).all()


def test_choice_is_repeatable_and_leaves_the_networks_alone():
    target, predictor = networks()
    pool = torch.randn(30, 2)
    before = [p.clone() for p in (*target.parameters(), *predictor.parameters())]
    state = torch.get_rng_state()
    one, two = (select_by_novelty(pool, 6, target=target, predictor=predictor) for _ in range(2))
    assert torch.equal(one.indices, two.indices) and len(set(one.indices.tolist())) == 6
    assert torch.equal(state, torch.get_rng_state())
    for p, kept in zip((*target.parameters(), *predictor.parameters()), before, strict=True):
        assert torch.equal(p, kept) and p.grad is None


def test_whole_pool_can_be_chosen_and_no_more():
    target, predictor = networks()
    pool = torch.randn(5, 2)
    found = select_by_novelty(pool, 5, target=target, predictor=predictor, steps=5)
    assert sorted(found.indices.tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="between 1 and 5"):
        select_by_novelty(pool, 6, target=target, predictor=predictor)
    with pytest.raises(ValueError, match="agree on the whole pool"):
        select_by_novelty(pool, 2, target=target, predictor=target)


def test_learning_rate_is_inverse_to_the_trace():
    kernels = torch.stack([torch.eye(4), 2 * torch.eye(4)])
    torch.testing.assert_close(trace_controlled_learning_rate(kernels, scale=0.1), torch.tensor([0.1, 0.05]))
    whole = trace_controlled_learning_rate(kernels, scale=0.1, mean=False)
    torch.testing.assert_close(whole, torch.tensor([0.025, 0.0125]))
    with pytest.raises(ValueError, match="positive scale"):
        trace_controlled_learning_rate(kernels, scale=0.0)

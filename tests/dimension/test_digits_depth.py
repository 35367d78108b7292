"""Eight hidden layers learn digits: dimension falls with depth, focusing grows with feature learning."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from observatory.dimension import LayerProfile, oscillation, profile
from observatory.studies.deep_networks import GaussianMLP


def before_and_after(gain: float, epochs: int, seed: int) -> tuple[LayerProfile, LayerProfile]:
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels)
    torch.manual_seed(seed)
    network = GaussianMLP([64, *[64] * 8, 10], gain)
    before = profile(network, x)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
    return before, profile(network, x)


@pytest.mark.slow
def test_dimension_falls_along_the_depth_of_a_trained_network():
    for seed in range(3):
        before, after = before_and_after(1.0, 60, seed)
        start, end = before["levina_bickel"], after["levina_bickel"]
        print(start, end, before["path_effective_nodes"], after["path_effective_nodes"], oscillation(end))
        assert (start - 7).abs().max() < 1  # near 7 in all layers
        assert (end.diff() < 0).all()
        assert end[0].item() == pytest.approx(6.0, abs=0.6) and end[-1].item() == pytest.approx(3.4, abs=0.6)
        assert after["path_effective_nodes"][:-1].mean().item() == pytest.approx(55, abs=4)
        for name in ("levina_bickel", "two_nn"):
            assert oscillation(after[name]).p_value > 0.05


@pytest.mark.slow
def test_focusing_grows_where_features_are_learnt():
    before, after = before_and_after(0.5, 150, 0)
    print(before["path_effective_nodes"], after["path_effective_nodes"])
    assert before["path_effective_nodes"][:-1].mean().item() == pytest.approx(60, abs=3)
    assert after["path_effective_nodes"][:-1].mean().item() == pytest.approx(20, abs=6)

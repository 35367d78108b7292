"""What the kernel's entropy does while networks of different depth learn handwritten digits."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from observatory.looking import ModelFunction
from observatory.ntk import collective_variables, empirical_ntk

TRAINING, PROBE, STEPS = 1400, 100, 600


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """1400 digits with pixels between 0 and 1, in random order."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.data), generator=torch.Generator().manual_seed(seed))[:TRAINING]
    return torch.tensor(bunch.data, dtype=torch.float32)[order] / 16, torch.tensor(bunch.target)[order]


def network(depth: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(64, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def entropies(depth: int, width: int, seed: int) -> tuple[float, float]:
    """Of the trace-contracted kernel of 100 training examples, before and after 600 steps of SGD."""
    torch.manual_seed(seed)
    net, (x, y) = network(depth, width), digits(seed)
    function = ModelFunction.of(net)  # refers to the live weights

    def entropy() -> float:
        return float(collective_variables(empirical_ntk(function, x[:PROBE], kind="trace")).entropy)

    before, update = entropy(), torch.optim.SGD(net.parameters(), lr=0.1)
    batches = TRAINING // 64
    for step in range(STEPS):
        if step % batches == 0:
            order = torch.randperm(TRAINING)
        batch = order[64 * (step % batches) :][:64]
        update.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        update.step()
    return before, entropy()


def change(depth: int, width: int) -> tuple[float, float]:
    """Mean over three seeds."""
    found = torch.tensor([entropies(depth, width, seed) for seed in range(3)]).mean(0)
    return float(found[0]), float(found[1])


def test_one_hidden_layer_compresses():
    before, after = change(1, 16)
    assert (before, after) == pytest.approx((1.80, 1.41), abs=0.15)  # other seeds: scatter about 0.1


def test_three_hidden_layers_form_structure():
    before, after = change(3, 64)
    assert (before, after) == pytest.approx((0.51, 1.71), abs=0.2)  # other seeds: scatter about 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "width", "sign"),
    [(1, 16, -1), (1, 64, -1), *((3, width, 1) for width in (4, 8, 16, 32, 64, 128, 256))],
)
def test_depth_decides_between_compression_and_structure(depth, width, sign):
    before, after = change(depth, width)
    assert sign * (after - before) > 0.05

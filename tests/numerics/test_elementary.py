"""Elementary losses have the values of torch's and survive the transforms that torch's do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap

from observatory.numerics.elementary import ElementaryLosses

LOSSES = [
    nn.MSELoss(),
    nn.MSELoss(reduction="sum"),
    nn.HuberLoss(delta=0.7),
    nn.SmoothL1Loss(beta=0.3),
    nn.SmoothL1Loss(beta=0.0, reduction="none"),
    nn.L1Loss(),
]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_values_are_those_of_torch(loss, generator):
    x, y = torch.randn(2, 20, 3, generator=generator, dtype=torch.float64)
    with ElementaryLosses():
        seen = loss(x, y)
    torch.testing.assert_close(seen, loss(x, y), rtol=1e-14, atol=0)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(), nn.SmoothL1Loss()], ids=str)
def test_nested_batches_against_common_targets(loss, generator):
    x, y = torch.randn(4, 2, 5, 1, generator=generator), torch.randn(5, 1, generator=generator)
    with ElementaryLosses():
        seen = vmap(vmap(lambda output: loss(output, y)))(x)
    expected = torch.stack([loss(output, y) for output in x.flatten(0, 1)]).view(4, 2)
    torch.testing.assert_close(seen, expected)


def test_forward_over_reverse_gives_the_hessian_of_the_mean_square(generator):
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(20, generator=generator, dtype=torch.float64)

    def loss(w):
        with ElementaryLosses():
            return nn.functional.mse_loss(x @ w, y)

    zero = torch.zeros(3, dtype=torch.float64)
    seen = vmap(lambda p: jvp(grad(loss), (zero,), (p,))[1])(torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(seen, 2 * x.mT @ x / 20)

"""Elementary losses have the values of torch's and survive the transforms that torch's do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from observatory.numerics.curvature import prepare_forward_mode
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

    prepare_forward_mode()
    zero = torch.zeros(3, dtype=torch.float64)
    seen = vmap(lambda p: jvp(grad(loss), (zero,), (p,))[1])(torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(seen, 2 * x.mT @ x / 20)


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none", ignore_index=2)], ids=str
)
@pytest.mark.parametrize("shape", [(20, 5), (8, 5, 3)])
def test_cross_entropy_is_that_of_torch_with_its_derivatives(loss, shape, generator):
    f = (30 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    y = torch.randint(5, (shape[0], *shape[2:]), generator=generator)
    y.view(-1)[0] = loss.ignore_index
    with ElementaryLosses():
        seen = loss(f, y)
    expected = loss(f, y)
    torch.testing.assert_close(seen, expected, rtol=1e-13, atol=1e-13)  # logits of 100: 64 eps
    slopes = [torch.autograd.grad(value.sum(), f)[0] for value in (seen, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-14)


class _Called(TorchDispatchMode):
    """Names of the operations that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_cross_entropy_of_certain_classes_keeps_its_digits():
    """In single precision: a loss of 10⁻⁴ from logits of 50."""
    f, y = torch.tensor([[50.0, 50 - 9.21034]]), torch.tensor([0])
    with _Called() as called, ElementaryLosses():
        seen = nn.functional.cross_entropy(f, y)
    assert "aten::_log_softmax" not in called.names
    assert seen.item() == pytest.approx(1e-4, rel=2e-3)  # eps/10⁻⁴ = 6e-4, and that of the gap


def test_other_cross_entropies_stay_those_of_torch(generator):
    f, y = torch.randn(6, 3, generator=generator), torch.randint(3, (6,), generator=generator)
    for loss in (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
        nn.CrossEntropyLoss(label_smoothing=0.1),
    ):
        with ElementaryLosses():
            seen = loss(f, y)
        assert torch.equal(seen, loss(f, y))

"""Pooling as recorded is PyTorch's own, in value and derivative, by window only where that is enough."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from observatory.looking import ModelFunction
from observatory.looking.calls import RecordedForward, record_calls

GEOMETRIES = (
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 3), "ceil_mode": True},
    {"kernel_size": 2, "stride": 1, "dilation": 2},
)


class Network(nn.Module):
    """A pointwise convolution by one, so that its output is its input, then whatever is given."""

    def __init__(self, channels: int, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        nn.init.ones_(self.inner.weight)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(x))


def recorded(network: nn.Module, x: Tensor) -> RecordedForward:
    return record_calls(ModelFunction.of(network.to(x.dtype)), x)


def images(channels: int, *, rounded: bool) -> Tensor:
    """With equal largest values in a window, of both signs, if rounded; and with what is not a number."""
    x = torch.randn(3, channels, 8, 11, dtype=torch.float64)
    if rounded:
        x = x.round()
        x[0, 0, 2, 3] = torch.nan
        x[1, 0, :3, :3] = torch.inf
        x[2, 0] = -torch.inf
    return x


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_values_and_derivatives_are_those_of_pytorch(geometry, rectified, channels, layout, rounded):
    def pooled(x: Tensor) -> Tensor:
        return functional.max_pool2d(functional.relu(x) if rectified else x, **geometry)

    x = images(channels, rounded=rounded).contiguous(memory_format=layout)
    record = recorded(Network(channels, pooled), x)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    expected = pooled(leaf)
    torch.testing.assert_close(record.output, expected, rtol=0, atol=0, equal_nan=True)

    directions = torch.randn(4, *expected.shape, dtype=x.dtype)
    (call,) = record.calls
    batched = record.gradients(directions, [call])[0]
    by_window = record.gradients(directions, [call.pooled])[0]
    for k, direction in enumerate(directions):
        (gradient,) = torch.autograd.grad(expected, leaf, direction, retain_graph=True)
        torch.testing.assert_close(record.gradients(direction, [call])[0], gradient, rtol=0, atol=0)
        torch.testing.assert_close(batched[k], gradient, rtol=0, atol=0)
        some = slice(1, 3)
        spread = call.pooled.pool.spread(by_window[k, some], some)
        torch.testing.assert_close(spread, gradient[some], rtol=0, atol=0)


def twice(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 2) + functional.max_pool2d(x, 2)


def unused(x: Tensor) -> Tensor:
    functional.max_pool2d(x, 2)
    return functional.avg_pool2d(x, 2)


def summed(x: Tensor) -> Tensor:
    return functional.max_pool2d(functional.relu(x), 2) + x.mean()


@pytest.mark.parametrize("after", [twice, unused, summed])
def test_gradient_that_is_needed_in_full_is_not_kept_by_window(after):
    x = images(5, rounded=False)
    record = recorded(Network(5, after), x)
    (call,) = record.calls
    assert call.pooled is None
    leaf = x.clone().requires_grad_()
    direction = torch.randn_like(record.output)
    (expected,) = torch.autograd.grad(after(leaf), leaf, direction)
    torch.testing.assert_close(record.gradients(direction, [call])[0], expected)


def test_convolution_whose_input_depends_on_parameters_needs_its_gradient_in_full():
    pool = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    first = Network(5, pool)
    record = recorded(nn.Sequential(first, Network(5, pool)), images(5, rounded=False))
    assert [call.pooled.ends for call in record.calls] == [True, False]


def overwritten_before(x: Tensor) -> Tensor:
    x = x.clone()
    rectified = functional.relu(x)
    x += 1.0
    return functional.max_pool2d(rectified, 2) + x.mean()


def overwritten_between(x: Tensor) -> Tensor:
    x = x.clone()
    functional.relu(x)
    return functional.max_pool2d(functional.relu(x, inplace=True), 2)


def overwritten_after(x: Tensor) -> Tensor:
    y = functional.relu_(functional.max_pool2d(functional.relu(x), 2) - 0.5)
    return functional.relu(functional.max_pool2d(x, 2), inplace=True) + y


def empty_windows(x: Tensor) -> Tensor:
    """Windows have a place left of all rows and one right of them: -inf, rectified before or not."""
    row = functional.relu(x[:, :, :1])
    return functional.max_pool2d(row, 2, 5, 1, 2).clamp_min(-1.0)


def pooled_is_changed(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What PyTorch pools may be overwritten, since its derivative does not depend on it."""
    return lambda x: change(functional.max_pool2d(functional.relu(x), 2))


CHANGES = {
    "scaled": lambda z: z.mul_(0.5),
    "shifted": lambda z: z.add_(1.0),
    "clamped": lambda z: z.clamp_(0.1, 1.0),
    "rectified": lambda z: functional.relu(z, inplace=True),
    "saturated": lambda z: z.tanh_(),
    "a channel set": lambda z: z.index_fill_(1, torch.tensor([0]), 2.0),
}


@pytest.mark.parametrize(
    "after",
    [
        overwritten_before,
        overwritten_between,
        overwritten_after,
        empty_windows,
        *(pytest.param(pooled_is_changed(change), id=name) for name, change in CHANGES.items()),
    ],
)
def test_what_is_overwritten_or_has_empty_windows(after):
    x = images(5, rounded=False)
    record = recorded(Network(5, after), x)
    leaf = x.clone().requires_grad_()
    expected = after(leaf)
    torch.testing.assert_close(record.output, expected)
    direction = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, leaf, direction)
    torch.testing.assert_close(record.gradients(direction, record.calls)[0], gradient)


def test_places_of_the_largest_values_can_be_asked_for():
    def unpooled(x: Tensor) -> Tensor:
        values, places = functional.max_pool2d(x, 2, return_indices=True)
        return functional.max_unpool2d(values, places, 2, output_size=x.shape[2:])

    x = images(5, rounded=False)
    torch.testing.assert_close(recorded(Network(5, unpooled), x).output, unpooled(x))


def test_poolings_inside_a_transform_pass():
    after = torch.func.vmap(lambda x: functional.max_pool2d(functional.relu(x)[None], 2)[0])
    x = images(5, rounded=False)
    torch.testing.assert_close(recorded(Network(5, after), x).output, after(x))


def test_what_was_recorded_is_let_go_at_once():
    """A graph and a pooling that refer to each other would wait for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        record = recorded(Network(5, nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))), images(5, rounded=False))
        pool = weakref.ref(record.calls[0].pooled.pool)
        del record
        assert pool() is None
    finally:
        gc.enable()

"""What the chosen weights do not reach is evaluated once, whatever the network does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from observatory.looking import ModelFunction
from observatory.numerics.curvature import ravel
from observatory.weights import (
    Landscape,
    Lines,
)


class Branching(nn.Module):
    """A prefix with a residual, an operation in place and a view; then the chosen layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.chosen, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        hidden = self.norm(self.first(x))
        torch.relu_(hidden)  # its return value is not used
        halves = hidden.view(len(x), 2, 3).chunk(2, dim=1)
        mixed = torch.cat(halves, 2).flatten(1)
        return self.last(torch.tanh(self.chosen(torch.tanh(self.chosen(mixed)))) + hidden)


@pytest.mark.parametrize("select", ["chosen", "chosen|last", "first", ".", "norm"])
def test_what_the_chosen_weights_do_not_reach_is_taken_over(select, generator):
    torch.manual_seed(3)
    net, x, y = Branching().double(), torch.randn(30, 5).double(), torch.arange(30) % 3
    model = ModelFunction.of(net, select=select)
    landscape = Landscape(model, (x, y), batch_size=16)
    size = landscape.center.numel()
    directions = torch.randn(3, size, generator=generator, dtype=torch.float64)
    lines, s = Lines(landscape, directions), torch.tensor([[0.0, 0.3, -1.0]]).double().expand(3, 3)
    names = list(model.theta)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        parts = torch.split(theta, [model.theta[name].numel() for name in names])
        tensors = {name: part.view_as(model.theta[name]) for name, part in zip(names, parts, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(net.eval(), tensors, (x,)), y)

    center = landscape.center
    expected = torch.stack([torch.stack([loss(center + t * p) for t in s[0]]) for p in directions])
    assert torch.allclose(lines.values(s), expected, rtol=1e-12)
    dense = torch.autograd.functional.hessian(loss, center)
    assert torch.allclose(lines.derivatives()[1], ((directions @ dense) * directions).sum(1), rtol=1e-9)
    assert torch.allclose(landscape.hessian_products(directions), directions @ dense, atol=1e-12)
    (first, _) = landscape.courses
    assert first is not None and len(first.layers) == {"chosen": 1, "chosen|last": 1, "first": 1, ".": 1}.get(
        select, 0
    )


class Restless(nn.Linear):
    """Calls one operation more every time."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Restless.calls += 1
        for _ in range(Restless.calls):
            x = x + 1 - 1
        return super().forward(x)


class Scratch(nn.Linear):
    """Changes in place what its weights have used."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x * 2
        out = super().forward(hidden)
        hidden.zero_()
        return out


@pytest.mark.parametrize("kind", [Restless, Scratch])
def test_networks_without_a_course_of_their_own_are_evaluated_as_they_are(kind):
    torch.manual_seed(4)
    net, x, y = kind(4, 3).double(), torch.randn(12, 4).double(), torch.arange(12) % 3
    lines = Lines(Landscape(net, (x, y)), torch.eye(15).double())
    seen = lines.values(torch.full((15, 1), 0.2, dtype=torch.float64))
    plain = nn.Linear(4, 3).double()
    plain.load_state_dict(net.state_dict())
    scaled = x if kind is Restless else 2 * x
    expected = Lines(Landscape(plain, (scaled, y)), torch.eye(15).double()).values(
        torch.full((15, 1), 0.2, dtype=torch.float64)
    )
    assert torch.allclose(seen, expected, rtol=1e-12)


class Unseen(torch.autograd.Function):
    """Twice its input, out of sight of torch's function modes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


def test_operations_out_of_sight_count_as_reached():
    class Net(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(Unseen.apply(super().forward(x)))

    torch.manual_seed(5)
    net, x, y = Net(4, 3).double(), torch.randn(12, 4).double(), torch.arange(12) % 3
    seen = Lines(Landscape(net, (x, y)), torch.eye(15).double()).values(
        torch.full((15, 1), 0.2, dtype=torch.float64)
    )
    for k, value in enumerate(seen[:, 0]):
        theta = ravel({n: p.detach() for n, p in net.named_parameters()}) + 0.2 * torch.eye(15).double()[k]
        f = torch.tanh(2 * (x @ theta[:12].view(3, 4).T + theta[12:]))
        assert value.item() == pytest.approx(nn.functional.cross_entropy(f, y).item(), rel=1e-12)

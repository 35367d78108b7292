"""Networks that are no chains."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """A block with a shortcut of its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shortcut = nn.Linear(12, 10), nn.Linear(10, 9)
        self.one, self.two, self.last = nn.Linear(10, 7), nn.Linear(7, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        skipped = self.shortcut(h)
        return self.last((skipped + self.two(self.one(h).relu())).relu())


class Twice(nn.Module):
    """One layer that is passed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.inner(x).relu()).relu())


class Gated(nn.Module):
    """h = a ⊙ σ(b)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(12, 9), nn.Linear(12, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.a(x) * self.b(x).sigmoid())


class Attention(nn.Module):
    """Three tokens of four numbers that attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(len(x), 3, 4)
        q, k, v = self.q(tokens), self.k(input=tokens), self.v(tokens)
        mixed = torch.softmax(q @ k.mT, -1) @ v
        return self.last(self.o(mixed).flatten(1))

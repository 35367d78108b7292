"""The networks that all benchmarks use."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp() -> nn.Module:
    """784-256-256-10, ReLU."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def cnn() -> nn.Module:
    """Three 3 × 3 convolutions 3-32-64-64, each with ReLU and 2 × 2 maximum, on images of 3 × 32 × 32."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))


class Residual(nn.Module):
    """Two 3 × 3 convolutions with batch norm, and the input added."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(fan_out), nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.skip = nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.skip(x))


def resnet18() -> nn.Module:
    """ResNet-18 with a 3 × 3 stem and widths 16-32-64-128, on images of 3 × 32 × 32."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    fan_in = 16
    for width, stride in ((16, 1), (32, 2), (64, 2), (128, 2)):
        layers += [Residual(fan_in, width, stride), Residual(width, width, 1)]
        fan_in = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class Block(nn.Module):
    """Causal self-attention and a feed-forward part, each behind a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, w = x.shape
        q, k, v = self.attention(self.norm1(x)).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(n, t, w))
        return x + self.feed(self.norm2(x))


class GPT(nn.Module):
    """A small GPT: `depth` blocks, learned positions, tied embedding; logits of the token after the last."""

    def __init__(
        self, vocabulary: int = 32, length: int = 32, width: int = 64, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        x = self.blocks(self.tokens(tokens) + self.positions(positions))
        return self.head(self.norm(x)[:, -1])


NETWORKS = {"mlp": mlp, "cnn": cnn, "resnet18": resnet18, "gpt": GPT}


def examples(name: str, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Inputs for the network `name`."""
    if name == "gpt":
        return torch.randint(32, (n, 32), generator=generator)
    return torch.randn(n, *((1, 28, 28) if name == "mlp" else (3, 32, 32)), generator=generator)

"""Small networks and data with known last layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

DOUBLE = torch.float64


def loader(*tensors: Tensor, batch_size: int = 32) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size)


def linear_head(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """W x + b as a network that is nothing but its last layer, so that features are inputs."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def ridge(features: Tensor, targets: Tensor, reg: float, weights: Tensor | None = None) -> Tensor:
    """(Fᵀ Ω F + ς²)⁻¹ Fᵀ Ω y, (d, O)."""
    w = torch.ones(len(features), dtype=features.dtype) if weights is None else weights
    a = (features.mT * w) @ features + reg * torch.eye(features.shape[1], dtype=features.dtype)
    return torch.linalg.solve(a, (features.mT * w) @ targets)


def mlp(inputs: int = 3, width: int = 12, outputs: int = 2, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).to(DOUBLE)


def table(n: int, inputs: int = 3, outputs: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator, dtype=DOUBLE)
    noise = torch.randn(n, outputs, generator=generator, dtype=DOUBLE)
    return x, torch.sin(x.sum(1, keepdim=True)) + 0.1 * noise

"""Networks with everything that a rule for layers could get wrong, each with inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.two = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.two(torch.relu_(self.norm1(self.one(x)))))
        y += x
        return torch.relu_(y)


class Tied(nn.Module):
    """Two linear maps share a weight, one is its transpose used functionally elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 5)
        self.two.weight = self.one.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.step(x))
        return self.head(x)


class Bypassed(nn.Module):
    """A weight is used by its module and, unseen by hooks, by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(5, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.one(x))
        return self.scale * self.head(torch.tanh(nn.functional.linear(hidden, self.one.weight.T)))


class TinyGPT(nn.Module):
    """Two blocks, causal attention, tied embedding."""

    def __init__(self, vocabulary: int = 7, width: int = 8, length: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 2, 12, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=self.tokens.weight.dtype)
        x = self.tokens(tokens) + self.positions(torch.arange(length, device=tokens.device))
        return self.head(self.norm(self.blocks(x, mask=mask.to(tokens.device), is_causal=True)))


class TimeFirst(nn.Module):
    """Works on (time, example, feature) inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))


class Windows(nn.Module):
    """Merges windows into the batch, as Swin transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, f = x.shape
        y = self.norm(torch.tanh(self.inner(x.reshape(n * 2, t // 2, f)))).reshape(n, t, 6)
        return self.head(y.mean(1))


class ClassToken(nn.Module):
    """Attention with the time axis first inside, of which only the first token is read."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return self.head(self.norm(x + mixed)[:, 0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 5)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


class Sequences(nn.Module):
    """A fused recurrent layer, which has no batching rule; the last place is read."""

    def __init__(self, layer: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.layer = layer(4, 5, batch_first=True, **options)
        self.head = nn.Linear(10 if self.layer.bidirectional else 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Packed(nn.Module):
    """Sequences of unequal length, filled up with 0; they cannot be packed unless lengths are numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layer = nn.Embedding(6, 4), nn.GRU(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = (tokens > 0).sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.tokens(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        return self.head(self.layer(packed)[1][-1])


class Routed(nn.Module):
    """Inputs decide which layer sees an example."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        positive = x[:, 0] > 0
        hidden = x.new_zeros(len(x), 4)
        for chosen, layer in ((positive, self.one), (~positive, self.two)):
            if bool(chosen.any()):
                hidden[chosen] = layer(x[chosen])
        return self.head(torch.tanh(hidden))


class PooledTwice(nn.Module):
    """A convolution of whose output two poolings and a sum are taken, before and after it is rectified."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Conv2d(4, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        rectified = functional.relu(y)
        pooled = functional.max_pool2d(rectified, 2) + functional.max_pool2d(y, 3, 2, ceil_mode=True)
        return self.head(functional.relu_(pooled).mean((2, 3)) + rectified.mean((2, 3)))


def pooled(pool: nn.Module, **options: object) -> nn.Module:
    """Two convolutions, rectified and pooled as in every textbook."""
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, **options),
        nn.ReLU(),
        pool,
        nn.Conv2d(6, 5, 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


def convolution(**options: object) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, **options),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def image() -> Tensor:
    return torch.randn(4, 4, 7, 7)


def warmed(module: nn.Module, x: Tensor) -> nn.Module:
    """With running statistics that are not those of the start."""
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(x + torch.randn_like(x))
    return module


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    net[0].requires_grad_(False)
    net[2].weight.requires_grad_(False)
    return net


def residual() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        ResidualBlock(4),
        ResidualBlock(4),
        nn.AvgPool2d(7),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return warmed(net, image())


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Dropout(0.4), nn.Linear(7, 3)),
        lambda: torch.randn(6, 5),
    ),
    "residual with batch norm": (residual, image),
    "grouped": (lambda: convolution(groups=2, padding=1), image),
    "dilated and strided": (lambda: convolution(dilation=2, stride=2, padding=2), image),
    "reflect padding": (lambda: convolution(padding=1, padding_mode="reflect"), image),
    "circular padding": (lambda: convolution(padding=(2, 1), padding_mode="circular", bias=False), image),
    "replicate padding": (lambda: convolution(padding=1, padding_mode="replicate"), image),
    "same padding": (lambda: same(), image),
    "pooled": (lambda: pooled(nn.MaxPool2d(2)), image),
    "pooled, channels last": (
        lambda: pooled(nn.MaxPool2d(2)).to(memory_format=torch.channels_last),
        lambda: image().contiguous(memory_format=torch.channels_last),
    ),
    "pooled in groups, with gaps": (
        lambda: pooled(nn.MaxPool2d(2, 2, padding=1, dilation=2), groups=2, bias=False),
        image,
    ),
    "pooled with overlaps": (lambda: pooled(nn.MaxPool2d((3, 2), 1), padding_mode="reflect"), image),
    "pooled twice": (PooledTwice, image),
    "1d convolution": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)),
        lambda: torch.randn(5, 3, 9),
    ),
    "3d convolution": (
        lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)),
        lambda: torch.randn(4, 2, 3, 3, 3),
    ),
    "transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(162, 3)),
        image,
    ),
    "group norm": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.Tanh(), nn.Flatten(), nn.Linear(150, 3)
        ),
        image,
    ),
    "rms norm": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.RMSNorm(6), nn.Tanh(), nn.Linear(6, 3)),
        lambda: torch.randn(6, 5),
    ),
    "tied": (Tied, lambda: torch.randn(6, 5)),
    "reused": (Reused, lambda: torch.randn(6, 5)),
    "bypassed": (Bypassed, lambda: torch.randn(6, 5)),
    "frozen": (frozen, lambda: torch.randn(6, 5)),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 3)),
        lambda: torch.randn(6, 5),
    ),
    "attention": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.LayerNorm(8), nn.Linear(8, 2)
        ),
        lambda: torch.randn(4, 3, 8),
    ),
    "transformer with tied embedding": (TinyGPT, lambda: torch.randint(7, (4, 4))),
    "padded embedding": (
        lambda: nn.Sequential(nn.Embedding(6, 4, padding_idx=0), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)),
        lambda: torch.randint(6, (6, 5)),
    ),
    "time first": (TimeFirst, lambda: torch.randn(5, 5, 4)),
    "windows": (Windows, lambda: torch.randn(4, 6, 4)),
    "class token": (ClassToken, lambda: torch.randn(3, 5, 4)),
    "recurrent cell": (Recurrent, lambda: torch.randn(5, 3, 4)),
    "recurrent layer": (lambda: Sequences(nn.RNN), lambda: torch.randn(5, 3, 4)),
    "gated recurrent layer": (
        lambda: Sequences(nn.GRU, num_layers=2, dropout=0.3),
        lambda: torch.randn(5, 3, 4),
    ),
    "long short-term memory": (lambda: Sequences(nn.LSTM, bidirectional=True), lambda: torch.randn(5, 3, 4)),
    "packed sequences": (
        Packed,
        lambda: torch.tensor([[1, 2, 0, 0], [3, 4, 5, 1], [2, 2, 2, 0], [5, 0, 0, 0], [1, 1, 3, 3]]),
    ),
    "routed": (Routed, lambda: torch.randn(6, 5)),
    "one output without an axis": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0)),
        lambda: torch.randn(6, 5),
    ),
}


def same() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 6, (1, 3), padding="same", dilation=2), nn.Tanh(), nn.Flatten(), nn.Linear(294, 3)
    )


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """The network `name` and its inputs."""
    network, inputs = CASES[name]
    module, x = network().to(dtype), inputs()
    return module, x.to(dtype) if x.is_floating_point() else x


def jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """(N, C, P), row by row with ordinary autograd: slow and obvious."""
    modes = [m.training for m in module.modules()]
    module.eval()
    parameters = [p for p in module.parameters() if p.requires_grad]
    rows = []
    for i in range(len(x)):
        outputs = module(x[i : i + 1]).flatten()
        rows.append([])
        for c in range(len(outputs)):
            found = torch.autograd.grad(outputs[c], parameters, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
            rows[-1].append(torch.cat([part.flatten() for part in parts]))
    for m, mode in zip(module.modules(), modes, strict=True):
        m.training = mode
    return torch.stack([torch.stack(row) for row in rows])

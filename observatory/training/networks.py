"""Plain networks that an experiment can name in YAML."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

Activation = Literal["relu", "tanh", "gelu", "silu", "softplus", "identity"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


def _activation(name: str) -> nn.Module:
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {name!r}")
    return _ACTIVATIONS[name]()


class MLP(nn.Sequential):
    """Fully connected: x ↦ W_L φ(... φ(W_1 x + b_1) ...) + b_L. Inputs are flattened behind the first axis.

    Args:
        widths: number of inputs, widths of the hidden layers, number of outputs.
        activation: φ.
        dropout: share of the hidden units that are set to zero in training.
        bias: with the terms b.
    """

    def __init__(
        self, widths: Sequence[int], activation: Activation = "relu", dropout: float = 0.0, bias: bool = True
    ) -> None:
        if len(widths) < 2:
            raise ValueError(f"widths are those of inputs, hidden layers and outputs, got {list(widths)}")
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(widths[0], widths[1], bias)]
        for fan_in, fan_out in pairwise(widths[1:]):
            layers.append(_activation(activation))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            layers.append(nn.Linear(fan_in, fan_out, bias))
        super().__init__(*layers)


class ConvNet(nn.Module):
    """Blocks of 3 × 3 convolution, φ and 2 × 2 maximum, then one linear readout of all that is left.

    Args:
        image: channels, height and width of the inputs.
        channels: width of each block; each one halves height and width.
        classes: number of outputs.
        activation: φ.
        dropout: share of the readout's inputs that are set to zero in training.

    Raises:
        ValueError: if the image is too small for that many blocks.
    """

    def __init__(
        self,
        image: tuple[int, int, int],
        channels: Sequence[int],
        classes: int,
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        fan_in, height, width = image
        blocks: list[nn.Module] = []
        for fan_out in channels:
            blocks += [nn.Conv2d(fan_in, fan_out, 3, padding=1), _activation(activation), nn.MaxPool2d(2)]
            fan_in, height, width = fan_out, height // 2, width // 2
        if height * width == 0:
            raise ValueError(f"{len(channels)} blocks halve an image of {image[1]} x {image[2]} to nothing")
        self.features = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(fan_in * height * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.dropout(self.features(x).flatten(1)))

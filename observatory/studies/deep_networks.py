"""Deep networks whose profiles along the depth are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from observatory.training.networks import MLP


class GaussianMLP(MLP):
    """A fully connected ReLU network with Gaussian weights of variance gain²·2/fan-in, and biases of zero.

    Args:
        widths: number of inputs, widths of the hidden layers, number of outputs.
        gain: 1 keeps the size of the signal from layer to layer (He et al. 2015, arXiv:1502.01852); smaller
            weights at the start mean more learning of features.

    Raises:
        ValueError: if the gain is not positive.
    """

    def __init__(self, widths: Sequence[int], gain: float = 1.0) -> None:
        if not gain > 0:
            raise ValueError(f"the gain of the initial weights must be positive, got {gain}")
        super().__init__(widths)
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=gain * math.sqrt(2 / layer.in_features))
                nn.init.zeros_(layer.bias)


class _Block(nn.Module):
    """y = ReLU(x + g(x)), g two 3 × 3 convolutions with batch norm."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(fan_out), nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class ResNet(nn.Sequential):
    """A residual network for small images: a stem, stages of blocks, global mean, readout.

    Each stage but the first halves height and width (He et al. 2016, arXiv:1512.03385).

    Args:
        image: channels, height and width of the inputs.
        channels: width of each stage.
        classes: number of outputs.
        blocks: per stage.
    """

    def __init__(
        self, image: tuple[int, int, int], channels: Sequence[int], classes: int, blocks: int = 2
    ) -> None:
        stem = [nn.Conv2d(image[0], channels[0], 3, 1, 1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()]
        stages: list[nn.Module] = []
        fan_in = channels[0]
        for stage, width in enumerate(channels):
            for block in range(blocks):
                stages.append(_Block(fan_in, width, 2 if stage > 0 and block == 0 else 1))
                fan_in = width
        super().__init__(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, classes))

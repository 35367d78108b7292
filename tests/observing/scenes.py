"""Models, data and instruments that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from observatory.looking import Look
from observatory.observing import Instrument
from observatory.records import Quantity


class Outputs(Instrument):
    """‖θ‖ and f(x) on the probe."""

    default_name = "outputs"

    def quantities(self) -> dict[str, Quantity]:
        return {
            "norm": Quantity((), "1", "‖θ‖"),
            "outputs": Quantity(("example", "class"), "1", "f(x) on the probe"),
        }

    def observe(self, look: Look) -> Mapping[str, Tensor]:
        torch.rand(3)  # nobody's stream may move
        norms = torch.stack([p.norm() for p in look.model.theta.values()])
        return {"norm": norms.norm(), "outputs": look.model(look.probe.inputs)}


def network() -> nn.Module:
    """Batch norm and dropout: what a look could disturb."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def batches(n: int = 20, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(n * size) % 3
    x = torch.randn(n * size, 6, generator=generator) + y[:, None]
    return list(zip(x.split(size), y.split(size), strict=True))


EVERY_STEP: dict[str, Any] = {"every_n_steps": 1, "max_overhead": None, "strict": True}

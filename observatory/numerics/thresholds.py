"""Right-hand sides that switch at a threshold, and what becomes of the gradient there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Heaviside:
    """H(u - θ), 0 at u = θ.

    A solution depends on a threshold at which its slope jumps through the time of the switch, which automatic
    differentiation of a comparison does not see: with u' = r₁ below and r₂ above θ, du(T)/dθ = 1 - r₂/r₁, and
    `hard` has 0.

    - "hard": a comparison; no gradient.
    - "sigmoid": 1/(1 + e^(-(u-θ)/ε)), forward and backward. The solution moves by O(ε), its gradient is
      exact; steps must resolve it, h |u'| ≲ ε.
    - "ste": hard forward, the gradient of the sigmoid backward; biased by some per cent, also as h → 0.

    A system that switches by `hard` names the parameters at whose value its slope jumps in an attribute
    `hard_thresholds`; `Assimilation` refuses them as unknowns.

    Args:
        kind: see above.
        width: ε, in the unit of u.
    """

    kind: Literal["hard", "sigmoid", "ste"] = "hard"
    width: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in ("hard", "sigmoid", "ste") or not self.width > 0:
            raise ValueError(
                f"kind is hard, sigmoid or ste and width positive, got {self.kind!r}, {self.width:g}"
            )

    def __call__(self, u: Tensor, threshold: Tensor | float) -> Tensor:
        distance = u - threshold
        if self.kind == "sigmoid":
            return torch.sigmoid(distance / self.width)
        hard = (distance > 0).to(u.dtype)
        if self.kind == "hard":
            return hard
        soft = torch.sigmoid(distance / self.width)
        return hard.detach() + soft - soft.detach()

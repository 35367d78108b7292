"""Unknown parameters, their bounds, and the coordinates in which they are sought."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unknown:
    """A parameter to be found: θ as a function of a coordinate z that begins at 0 and knows no bounds.

    - no bound: θ = θ₀ + s z
    - lower or upper bound: θ = l + (θ₀ - l) eᶻ, θ = u - (u - θ₀) eᶻ
    - both: θ = l + (u - l) / (1 + e^(-z - z₀))

    Args:
        init: θ₀; default what the module holds.
        lower: l; 0 for a rate.
        upper: u.
        scale: s, what z = 1 means without bounds; default |θ₀|, or 1 where that is 0.
        individual: a value for each trajectory instead of one for all; for scalar parameters.

    Raises:
        ValueError: if the bounds are no interval around `init`.
    """

    init: float | None = None
    lower: float | None = None
    upper: float | None = None
    scale: float | None = None
    individual: bool = False

    def begun(self, name: str, own: Tensor) -> Tensor:
        """θ₀, of the shape of the module's own value.

        Raises:
            ValueError: if it is not inside the bounds.
        """
        start = own.detach().clone() if self.init is None else torch.full_like(own, self.init)
        below, above = (
            -math.inf if self.lower is None else self.lower,
            math.inf if self.upper is None else self.upper,
        )
        if not ((start > below) & (start < above)).all():
            raise ValueError(f"{name} begins at {start.tolist()}, outside its bounds ({below:g}, {above:g})")
        return start

    def unit(self, start: Tensor) -> Tensor:
        """s."""
        if self.scale is not None:
            return torch.full_like(start, self.scale)
        size = start.square().mean().sqrt()  # of a tensor of parameters, its root mean square
        return torch.where(size > 0, size, 1.0).expand_as(start).clone()

    def value(self, z: Tensor, start: Tensor, unit: Tensor) -> Tensor:
        """θ(z)."""
        if self.lower is not None and self.upper is not None:
            z0 = torch.logit((start - self.lower) / (self.upper - self.lower))
            return self.lower + (self.upper - self.lower) * torch.sigmoid(z + z0)
        if self.lower is not None:
            return self.lower + (start - self.lower) * z.exp()
        if self.upper is not None:
            return self.upper - (self.upper - start) * z.exp()
        return start + unit * z

    def inside(self, theta: Tensor, unit: Tensor) -> Tensor:
        """θ moved into the bounds, a hundredth of the unit away from them."""
        margin = 0.01 * unit
        if self.lower is not None and self.upper is not None:
            margin = margin.clamp_max(0.01 * (self.upper - self.lower))
        theta = theta if self.lower is None else torch.maximum(theta, self.lower + margin)
        return theta if self.upper is None else torch.minimum(theta, self.upper - margin)

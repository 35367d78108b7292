"""Unknown parameters, their bounds, and the coordinates in which they are sought."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unknown:
    """A parameter to be found: θ as a function of a coordinate z that begins at 0 and knows no bounds.

    - no bound: θ = θ₀ + s z
    - lower or upper bound: θ = l + (θ₀ - l) eᶻ, θ = u - (u - θ₀) eᶻ
    - both: θ = l + (u - l) / (1 + e^(-z - z₀))
    - bounds="project": θ = θ₀ + s z, moved back to the bound after each step beyond it; a bound may then be
      reached, while the moments of Adam go stale there

    Args:
        init: θ₀; default what the module holds.
        lower: l; 0 for a rate.
        upper: u.
        scale: s, what z = 1 means without bounds; default |θ₀|, or 1 where that is 0.
        individual: a value for each trajectory instead of one for all; for scalar parameters.
        prior: standard deviation of a Gaussian prior on z around 0: of ln θ for a rate with lower=0; default
            no prior.
        bounds: how they are kept.

    Raises:
        ValueError: if the bounds are no interval around `init`, or the prior is not positive.
    """

    init: float | None = None
    lower: float | None = None
    upper: float | None = None
    scale: float | None = None
    individual: bool = False
    prior: float | None = None
    bounds: Literal["transform", "project"] = "transform"

    def __post_init__(self) -> None:
        if (self.prior is not None and not self.prior > 0) or self.bounds not in ("transform", "project"):
            raise ValueError(
                f"prior is a positive standard deviation and bounds transform or project, got "
                f"{self.prior} and {self.bounds!r}"
            )

    @property
    def interval(self) -> tuple[float, float]:
        """The bounds, infinite where there is none."""
        return (
            -math.inf if self.lower is None else self.lower,
            math.inf if self.upper is None else self.upper,
        )

    def begun(self, name: str, own: Tensor) -> Tensor:
        """θ₀, of the shape of the module's own value.

        Raises:
            ValueError: if it is not inside the bounds.
        """
        start = own.detach().clone() if self.init is None else torch.full_like(own, self.init)
        below, above = self.interval
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
        if self.bounds == "project":
            free = start + unit * z
            # the slope of a clamp is 0 beyond the bound, from where no gradient would lead back
            return free + (free.clamp(*self.interval) - free).detach()
        if self.lower is not None and self.upper is not None:
            z0 = torch.logit((start - self.lower) / (self.upper - self.lower))
            return self.lower + (self.upper - self.lower) * torch.sigmoid(z + z0)
        if self.lower is not None:
            return self.lower + (start - self.lower) * z.exp()
        if self.upper is not None:
            return self.upper - (self.upper - start) * z.exp()
        return start + unit * z

    def projected(self, z: Tensor, start: Tensor, unit: Tensor) -> Tensor:
        """z moved back to where θ is inside the bounds; of transformed bounds z itself."""
        if self.bounds == "transform":
            return z
        return ((start + unit * z).clamp(*self.interval) - start) / unit

    def at_bound(self, theta: Tensor, start: Tensor) -> Tensor:
        """Whether θ has come closer to a bound than a thousandth of where it began, or has reached it."""
        near = torch.zeros_like(theta, dtype=torch.bool)
        for bound in self.interval:
            if math.isfinite(bound):
                near = near | ((theta - bound).abs() <= 1e-3 * (start - bound).abs())
        return near

    def inside(self, theta: Tensor, unit: Tensor) -> Tensor:
        """θ moved into the bounds, a hundredth of the unit away from them."""
        margin = 0.01 * unit
        if self.lower is not None and self.upper is not None:
            margin = margin.clamp_max(0.01 * (self.upper - self.lower))
        theta = theta if self.lower is None else torch.maximum(theta, self.lower + margin)
        return theta if self.upper is None else torch.minimum(theta, self.upper - margin)

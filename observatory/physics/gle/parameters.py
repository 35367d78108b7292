"""Mass, frictions and times as trainable numbers: what every differentiable model of a kernel shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from observatory.physics.gle.kernels import ExponentialKernel, exponential_kernel, kernel_of_logarithms

Batch = Tensor | tuple[Tensor, ...]


class KernelParameters(nn.Module):
    """ln m, ln γᵢ, ln τᵢ of Γ = Σ(γᵢ/τᵢ)e^{-t/τᵢ}, and of cosines, positive by construction; their metrics.

    Args:
        mass: initial m.
        gamma: initial γᵢ.
        tau: initial τᵢ.
        cosines: initial (aⱼ, σⱼ, ωⱼ).

    Raises:
        ValueError: if they are not positive, or a friction lacks its time.
    """

    def __init__(
        self,
        mass: float,
        gamma: Sequence[float],
        tau: Sequence[float],
        cosines: Sequence[tuple[float, float, float]] = (),
    ) -> None:
        super().__init__()
        exponential_kernel(tuple(gamma), tuple(tau), cosines=list(cosines))  # refuses what is not a kernel
        if not (gamma or cosines) or min(mass, *gamma) <= 0:
            raise ValueError(f"mass and frictions must be positive, got mass={mass:g}, gamma={tuple(gamma)}")
        self.log_mass, self.log_gamma, self.log_tau = (
            nn.Parameter(torch.tensor(values, dtype=torch.float64).log()) for values in (mass, gamma, tau)
        )
        waves = torch.tensor(list(cosines), dtype=torch.float64).reshape(-1, 3).T.log()
        self.log_cosines = nn.Parameter(waves) if cosines else None  # rows ln a, ln σ, ln ω

    @property
    def kernel(self) -> ExponentialKernel:
        waves = [] if self.log_cosines is None else [self.log_cosines.flatten()]
        return kernel_of_logarithms(torch.cat([self.log_gamma, self.log_tau, *waves]), len(self.log_gamma))

    @property
    def mass(self) -> Tensor:
        return self.log_mass.exp()

    def training_loss(self, batch: Batch) -> Tensor:
        """Of positions (P, N) or (P, N, 1)."""
        raise NotImplementedError

    def validation_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """The loss on other data, and what has been found."""
        kernel = self.kernel
        found = {"friction": kernel.friction(), "memory_time": kernel.memory_time(), "mass": self.mass}
        return {"loss": self.training_loss(batch), **found}

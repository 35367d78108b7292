"""What a fit by simulation has found so far, and what the data leave open."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.physics.gle.kernels import ExponentialKernel, kernel_of_logarithms, rising

TOLD_APART = math.log(2)  # excess above which the best simulation is not the equation of the data


@dataclass(frozen=True)
class Incumbent:
    """What is best so far; parameters are (m, γᵢ, τᵢ, aⱼ, σⱼ, ωⱼ)."""

    parameters: Tensor  # (1 + 2n + 3c,)
    low: Tensor  # range that the data do not exclude, (1 + 2n + 3c,)
    high: Tensor
    integrals: Tensor  # friction and memory time: best, low, high, (3, 2)
    terms: int  # n
    loss: float  # mean over independent simulations
    excess: float  # ln of the loss over the largest loss of one simulation against the others

    @property
    def kernel(self) -> ExponentialKernel:
        """Γ, times rising and frequencies rising."""
        theta = self.parameters[1:].log()
        return kernel_of_logarithms(theta[rising(theta, self.terms)], self.terms)

    @property
    def explains(self) -> bool:
        """Whether the loss is at most twice that between two simulations; else nothing is excluded by it."""
        return self.excess <= TOLD_APART

    @property
    def mass_identified(self) -> bool:
        """Whether data that are explained leave masses that span less than a factor of two."""
        return self.explains and bool(self.high[0] < 2 * self.low[0])

    def scalars(self) -> dict[str, float]:
        """Everything by name, to be logged."""
        rows = torch.stack([self.parameters[0], self.low[0], self.high[0]])
        columns = {"mass": rows, "friction": self.integrals[:, 0], "memory_time": self.integrals[:, 1]}
        named = {
            f"{name}{end}": float(value)
            for name, values in columns.items()
            for end, value in zip(("", "_low", "_high"), values, strict=True)
        }
        return {"loss": self.loss, "excess": self.excess} | named


def integrals_of(theta: Tensor, terms: int) -> Tensor:
    """Friction and memory time of logarithms (S, 1 + 2n + 3c), the first being that of the mass; (S, 2)."""
    kernel = kernel_of_logarithms(theta[:, 1:], terms)
    return torch.stack([kernel.friction(), kernel.memory_time()], -1)

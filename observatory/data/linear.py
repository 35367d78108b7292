"""A linear regression task whose curvatures are prescribed: the loss is exactly known."""

from __future__ import annotations

from typing import Any

import torch

from observatory.data.tensors import Splits, TensorData


class LinearTask(TensorData):
    """Inputs whose second moment is diagonal with prescribed eigenvalues; targets are noise about zero.

    (1/N) Xᵀ X = diag h and Xᵀ ε = 0 exactly, so that the least-squares weights are zero and the Hessian of
    the mean of ½(w·x - ε)² is diag h. The curvatures h are spaced evenly in their logarithm. There is no
    validation and no test split of its own: the training examples stand in.

    Args:
        examples: N, training examples.
        inputs: number of curvatures d < N.
        smallest: smallest curvature.
        largest: largest curvature.
        noise: standard deviation s of the targets, (1/N) Σ ε² = s² exactly.
        options: those of `TensorData`.

    Raises:
        ValueError: if there are too few examples, or the curvatures are not positive and ordered.
    """

    def __init__(
        self,
        examples: int = 1000,
        inputs: int = 24,
        smallest: float = 0.1,
        largest: float = 10.0,
        noise: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 < inputs < examples:
            raise ValueError(f"{inputs} inputs need more than {inputs} examples, got {examples}")
        if not 0 < smallest <= largest:
            raise ValueError(f"curvatures must obey 0 < smallest ≤ largest, got {smallest} and {largest}")
        self.examples, self.inputs, self.noise = examples, inputs, noise
        self.smallest, self.largest = smallest, largest

    def splits(self) -> Splits:
        generator = torch.Generator().manual_seed(self.split_seed)
        drawn = torch.randn(self.examples, self.inputs + 1, generator=generator, dtype=torch.float64)
        orthonormal = torch.linalg.qr(drawn).Q * self.examples**0.5  # the last column is the noise
        ends = torch.tensor([self.smallest, self.largest], dtype=torch.float64).log()
        curvatures = torch.exp(
            torch.linspace(float(ends[1]), float(ends[0]), self.inputs, dtype=torch.float64)
        )
        x = (orthonormal[:, :-1] * curvatures.sqrt()).float()
        data = (x, (self.noise * orthonormal[:, -1:]).float())
        return Splits(data, data, data)

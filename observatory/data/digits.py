"""Handwritten digits, 8 × 8 pixels, that come with scikit-learn: real data without a download."""

from __future__ import annotations

from typing import Any

import torch

from observatory.data.tensors import Splits, TensorData, split_tensors


class Digits(TensorData):
    """1797 handwritten digits of 10 classes (Alpaydin & Kaynak 1998), normalised with the training split.

    Args:
        flat: inputs of shape (64,) instead of images (1, 8, 8).
        validation: share of the examples in the validation split.
        test: share of the examples in the test split.
        options: those of `TensorData`.
    """

    def __init__(
        self, flat: bool = False, validation: float = 0.1, test: float = 0.2, **options: Any
    ) -> None:
        super().__init__(**options)
        self.flat, self.validation, self.test = flat, validation, test

    def splits(self) -> Splits:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        x = torch.from_numpy(pixels).float().view(len(pixels), *((64,) if self.flat else (1, 8, 8)))
        data = split_tensors(
            x,
            torch.from_numpy(labels).long(),
            validation=self.validation,
            test=self.test,
            generator=torch.Generator().manual_seed(self.split_seed),
        )
        std, mean = torch.std_mean(data.train[0])
        return Splits(*(((x - mean) / std, y) for x, y in data))

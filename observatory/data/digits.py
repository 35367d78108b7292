"""Handwritten digits, 8 × 8 pixels, that come with scikit-learn: real data without a download."""

from __future__ import annotations

import torch

from observatory.data.tensors import Splits, TensorData, split_tensors


class Digits(TensorData):
    """1797 handwritten digits of 10 classes (Alpaydin & Kaynak 1998), normalised with the training split.

    Args:
        batch_size: examples per training batch.
        flat: inputs of shape (64,) instead of images (1, 8, 8).
        validation: share of the examples in the validation split.
        test: share of the examples in the test split.
        subset: number of training examples to keep, with the class shares of all; default all.
        shuffle_labels: share of the training labels that are permuted among themselves, 0 to 1.
        seed: of the order of the examples in each epoch.
        split_seed: of the split, the subset and the permuted labels.
        num_workers: processes that prepare batches; 0 is fastest for data in memory.
    """

    def __init__(
        self,
        batch_size: int = 64,
        flat: bool = False,
        validation: float = 0.1,
        test: float = 0.2,
        subset: int | None = None,
        shuffle_labels: float = 0.0,
        seed: int = 0,
        split_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, subset, shuffle_labels, seed, split_seed, num_workers)
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

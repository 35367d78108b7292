"""Data modules and data sets."""

from observatory.data.digits import Digits
from observatory.data.loading import EpochSampler, ResumableLoader, evaluation_loader, training_loader
from observatory.data.steps import Steps
from observatory.data.tensors import Splits, TensorData, split_tensors, spread_order

__all__ = [
    "Digits",
    "EpochSampler",
    "ResumableLoader",
    "Splits",
    "Steps",
    "TensorData",
    "evaluation_loader",
    "split_tensors",
    "spread_order",
    "training_loader",
]

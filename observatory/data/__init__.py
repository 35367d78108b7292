"""Data modules and data sets."""

from observatory.data.digits import Digits
from observatory.data.files import MissingData, data_root
from observatory.data.images import CIFAR10, MNIST, CIFAR10Subset, FashionMNIST, HandwrittenDigits
from observatory.data.langevin import LangevinTrajectories
from observatory.data.linear import LinearTask
from observatory.data.loading import EpochSampler, ResumableLoader, evaluation_loader, training_loader
from observatory.data.observations import Observed, ObservedTrajectories, SimulatedTrajectories
from observatory.data.recordings import TrajectorySet, read_trajectories
from observatory.data.stacked import StackedData, StackedTensors
from observatory.data.steps import Steps
from observatory.data.tables import UCI, Diabetes
from observatory.data.tensors import Splits, TensorData, split_tensors, spread_order
from observatory.data.trajectories import Trajectories
from observatory.data.uci_splits import UCISplits

__all__ = [
    "CIFAR10",
    "MNIST",
    "UCI",
    "CIFAR10Subset",
    "Diabetes",
    "Digits",
    "EpochSampler",
    "FashionMNIST",
    "HandwrittenDigits",
    "LangevinTrajectories",
    "LinearTask",
    "MissingData",
    "Observed",
    "ObservedTrajectories",
    "ResumableLoader",
    "SimulatedTrajectories",
    "Splits",
    "StackedData",
    "StackedTensors",
    "Steps",
    "TensorData",
    "Trajectories",
    "TrajectorySet",
    "UCISplits",
    "data_root",
    "evaluation_loader",
    "read_trajectories",
    "split_tensors",
    "spread_order",
    "training_loader",
]

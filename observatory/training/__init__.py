"""The one loop: LightningModules for everything that is trained here, and exact resuming."""

from observatory.training.best_epoch import BestEpoch
from observatory.training.ensemble import Ensemble
from observatory.training.fit import Fit
from observatory.training.iterate import Iterate
from observatory.training.networks import MLP, ConvNet
from observatory.training.replicas import Replicas
from observatory.training.resuming import SeedEveryStep, seed_streams
from observatory.training.supervised import Supervised

__all__ = [
    "MLP",
    "BestEpoch",
    "ConvNet",
    "Ensemble",
    "Fit",
    "Iterate",
    "Replicas",
    "SeedEveryStep",
    "Supervised",
    "seed_streams",
]

"""The one loop: LightningModules for everything that is trained here, and exact resuming."""

from observatory.training.networks import MLP, ConvNet
from observatory.training.supervised import Supervised

__all__ = ["MLP", "ConvNet", "Supervised"]

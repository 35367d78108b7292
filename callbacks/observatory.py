"""Everything at once."""

from __future__ import annotations

from typing_extensions import Unpack

from observatory import dimension, ntk
from observatory.callbacks.callback import ObservingCallback
from observatory.callbacks.options import WatchingOptions


class Observatory(ObservingCallback):
    """Kernel, Fisher information and layers, with their defaults: `Trainer(callbacks=[Observatory()])`.

    Every instrument that needs nothing but the network and a few examples. `WeightFluctuations` (a window of
    steps) and `LastLayerUncertainty` (all training data) are added by name.

    Args:
        options: see `WatchingOptions`; `max_overhead` is that of all instruments together.
    """

    def __init__(self, **options: Unpack[WatchingOptions]) -> None:
        layers = dimension.LayerDimensionality(probe=500, max_features=2048)  # cheap
        super().__init__([ntk.CollectiveVariables(), ntk.FisherInformation(), layers], **options)

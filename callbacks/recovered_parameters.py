"""Parameters recovered from trajectories, during a Lightning run."""

from __future__ import annotations

from typing_extensions import Unpack

from observatory.assimilated import instrument
from observatory.callbacks.callback import ObservingCallback
from observatory.callbacks.options import ObservingOptions, split


class RecoveredParameters(ObservingCallback):
    """Parameters and misfit of a fit of trajectories, and at its end the standard errors.

    Args:
        options: see `ObservingOptions`.
    """

    def __init__(self, **options: Unpack[ObservingOptions]) -> None:
        looking, watching = split(options)
        super().__init__([instrument.RecoveredParameters(**looking)], **watching)

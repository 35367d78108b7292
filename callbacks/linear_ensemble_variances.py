"""Ensembles of linear networks beside their closed forms, during a Lightning run."""

from __future__ import annotations

from typing_extensions import Unpack

from observatory.callbacks.callback import ObservingCallback
from observatory.callbacks.options import ObservingOptions, split
from observatory.weights import ensemble_instrument


class LinearEnsembleVariances(ObservingCallback):
    """Moments of `observatory.solvable.ensembles.LinearEnsembles`, their standard errors and closed forms.

    Args:
        options: see `ObservingOptions`.
    """

    def __init__(self, **options: Unpack[ObservingOptions]) -> None:
        looking, watching = split(options)
        super().__init__([ensemble_instrument.LinearEnsembleVariances(**looking)], **watching)

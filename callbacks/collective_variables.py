"""Collective variables of the empirical neural tangent kernel, during a Lightning run."""

from __future__ import annotations

from typing_extensions import Unpack

from observatory.callbacks.callback import ObservingCallback
from observatory.callbacks.options import ObservingOptions, split
from observatory.ntk import instrument


class CollectiveVariables(ObservingCallback):
    """Trace, entropy and spectrum of the empirical neural tangent kernel on a probe.

    Args:
        keep_kernel: record the matrix itself at every look.
        options: see `ObservingOptions`.
    """

    def __init__(self, *, keep_kernel: bool = True, **options: Unpack[ObservingOptions]) -> None:
        looking, watching = split(options)
        super().__init__([instrument.CollectiveVariables(keep_kernel=keep_kernel, **looking)], **watching)

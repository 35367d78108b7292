"""The arguments that all callbacks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from observatory.looking import Forward, Loss, Output, Probe, ProbeRequest


class WatchingOptions(TypedDict, total=False):
    """When to look, and what that may cost.

    Args:
        looks_per_decade: look at steps evenly spaced in ln(step), so many per factor of ten. This is the
            default, with 12; give at most one of these four.
        every_n_steps: look every so many optimizer steps.
        every_n_epochs: look at the end of every so many epochs.
        at: look at these steps.
        max_overhead: seconds of observing per second of training (default 0.05); looks are postponed to keep
            below. None: no limit.
        strict: a failing instrument ends the run instead of being switched off with a warning.
    """

    looks_per_decade: float | None
    every_n_steps: int | None
    every_n_epochs: int | None
    at: Sequence[int] | None
    max_overhead: float | None
    strict: bool


class ObservingOptions(WatchingOptions, total=False):
    """What one instrument looks at, and when.

    Args:
        name: folder of the record and section of the dashboard.
        probe: how many examples, or a request, or the examples themselves.
        inputs: what the model is called with, from a batch of the loader; default its first part.
        targets: what it should return, from a batch of the loader; default its second part.
        forward: how the model is called on the inputs, `forward(module, inputs)`; default `module(inputs)`.
        output: which part of what the model returns is meant.
        loss: `loss(output, targets)`; default cross-entropy for integer targets, otherwise half the squares.
        select: regular expression of the parameter names to look at; default all that require a gradient.
    """

    name: str
    probe: int | ProbeRequest | Probe | None
    inputs: Callable[[Any], Any] | None
    targets: Callable[[Any], Any] | None
    forward: Forward | None
    output: Output | None
    loss: Loss | None
    select: str | None


def split(options: ObservingOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the instrument, and those of the callback."""
    watching = {k: v for k, v in options.items() if k in WatchingOptions.__annotations__}
    return {k: v for k, v in options.items() if k not in watching}, watching

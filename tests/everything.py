"""Every instrument that exists, at work at every step."""

from __future__ import annotations

from typing import Any

import observatory.callbacks
from observatory.callbacks.callback import ObservingCallback

EVERY_STEP: dict[str, Any] = {"every_n_steps": 1, "max_overhead": None, "strict": True}
SMALL: dict[str, dict[str, Any]] = {  # what a run of a dozen updates needs
    "WeightFluctuations": {"window": (3, 8), "directions": 3},
}
TOGETHER = {"Observatory"}  # made of the others
ELSEWHERE = {"LinearEnsembleVariances", "RecoveredParameters"}  # look at kinds of model of their own


def watching_callbacks() -> dict[str, type[ObservingCallback]]:
    """The public callbacks that watch; others steer a run."""
    public = {name: getattr(observatory.callbacks, name) for name in observatory.callbacks.__all__}
    return {name: make for name, make in public.items() if issubclass(make, ObservingCallback)}


def every_instrument(**options: Any) -> list[ObservingCallback]:
    """One callback of each public class; `options` for all of them, by default a look at every step."""
    makers = {name: make for name, make in watching_callbacks().items() if name not in TOGETHER | ELSEWHERE}
    return [make(**(EVERY_STEP | SMALL.get(name, {}) | options)) for name, make in makers.items()]

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


def every_instrument(**options: Any) -> list[ObservingCallback]:
    """One callback of each public class; `options` for all of them, by default a look at every step."""
    names = [name for name in observatory.callbacks.__all__ if name not in TOGETHER]
    makers = {name: getattr(observatory.callbacks, name) for name in names}
    return [make(**(EVERY_STEP | SMALL.get(name, {}) | options)) for name, make in makers.items()]

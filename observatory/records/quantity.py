"""What a recorded quantity is: dims, unit, definition."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """Says what the numbers of one growing array mean.

    Args:
        dims: names of the axes after the leading one, which is always "step"; () for a scalar.
        unit: "1" for a pure number.
        definition: one sentence, with the formula.
    """

    dims: tuple[str, ...]
    unit: str
    definition: str

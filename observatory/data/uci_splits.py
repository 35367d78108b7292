"""All published splits of a table at once."""

from __future__ import annotations

from typing import Any

from observatory.data.stacked import StackedData
from observatory.data.tables import EMBEDDED, UCI


class UCISplits(StackedData):
    """The first splits of a table of the UCI benchmark, side by side: batches (splits, B, ...).

    Args:
        name: of the table, see `UCI`.
        splits: number of splits.
        options: those of `UCI`.
    """

    def __init__(self, name: str = EMBEDDED, splits: int = 20, **options: Any) -> None:
        super().__init__([UCI(name, split, **options) for split in range(splits)])

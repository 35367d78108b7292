"""When snapshots are taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Window:
    """(start, stop) in `unit`, stop not included, or "auto": `length` snapshots from when the run is at rest.

    Raises:
        ValueError: if it is empty, or cannot hold three snapshots.
    """

    bounds: tuple[int, int] | Literal["auto"]
    unit: Literal["steps", "epochs"]
    every: int  # steps between snapshots
    length: int  # snapshots of an automatic window

    def __post_init__(self) -> None:
        if self.unit not in ("steps", "epochs"):
            raise ValueError(f"unit must be 'steps' or 'epochs', got {self.unit!r}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")
        if self.bounds == "auto":
            if self.length < 3:
                raise ValueError(f"a window needs at least 3 snapshots, got length={self.length}")
            return
        start, stop = self.bounds
        few = self.unit == "steps" and (stop - start - 1) // self.every + 1 < 3
        if start < 0 or stop <= start or few:
            raise ValueError(
                f"the window {tuple(self.bounds)} in {self.unit} with every={self.every} holds fewer than 3 "
                "snapshots; give 0 ≤ start < stop"
            )

    @property
    def auto(self) -> bool:
        return self.bounds == "auto"

    def settings(self) -> dict[str, Any]:
        """For the record."""
        bounds = self.bounds if self.bounds == "auto" else list(self.bounds)
        return {"window": bounds, "unit": self.unit, "every": self.every}

    def holds(self, step: int, epoch: int) -> bool:
        """Whether a snapshot may be taken now; of an automatic window always."""
        if self.bounds == "auto":
            return True
        return self.bounds[0] <= (step if self.unit == "steps" else epoch) < self.bounds[1]

    def complete(self, snapshots: int) -> bool:
        """Whether an automatic window has all that it wants; others end by themselves."""
        return self.auto and snapshots >= self.length

    def snapshots(self, step: int, epoch: int) -> int:
        """How many are to be expected, with epochs as long as those before this step."""
        if self.bounds == "auto":
            return self.length
        steps = self.bounds[1] - self.bounds[0]
        if self.unit == "epochs":
            steps *= max(1, round(step / max(epoch, 1)))
        return max(3, -(-steps // self.every))

    def complaint(self, snapshots: int, *, rest: int, ratio: float) -> str:
        """Why there are too few.

        Args:
            snapshots: that were taken.
            rest: steps over which an automatic window looks for rest.
            ratio: r_FDR of the last of them.
        """
        if self.auto:
            return (
                f"the run did not come to rest early enough (r_FDR of the last {rest} steps {ratio:.3g}): "
                f"{snapshots} of at least 3 snapshots were taken; train longer, or give the window in steps "
                "or epochs"
            )
        return (
            f"the window {self.bounds} in {self.unit} holds {snapshots} snapshots of at least 3: training "
            f"ended before it, or it is too short for every={self.every}"
        )

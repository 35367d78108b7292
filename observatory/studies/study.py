"""What a study is: finished runs in, figures, a table and sentences out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observatory.records import Finding, Run, open_run
from observatory.report import Section

END = "checkpoints/end.ckpt"  # in the folder of a run: the state that it ended with


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end."""

    name: str
    point: Mapping[str, Any]  # what distinguishes it within the sweep, dotted key to value
    metrics: Mapping[str, float]  # the last value of each, such as test/loss
    folder: Path

    @property
    def record(self) -> Run:
        """What its instruments recorded.

        Raises:
            FileNotFoundError: if it had none.
        """
        return open_run(self.folder)

    def state(self, prefix: str) -> dict[str, Any]:
        """What the run ended with: buffers, parameters and extra state under `prefix`, by name.

        Raises:
            FileNotFoundError: if its end was not kept.
        """
        import torch

        content = torch.load(self.folder / END, map_location="cpu", weights_only=True)["state_dict"]
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in content.items() if name.startswith(start)}

    def metric(self, name: str) -> float:
        """A metric at the end.

        Raises:
            ValueError: if the run has none of that name.
        """
        if name not in self.metrics:
            raise ValueError(f"run {self.name} has no metric {name!r}; it has {', '.join(self.metrics)}")
        return self.metrics[name]


@dataclass(frozen=True)
class Conclusion:
    """The sections of a study's page; the first one's findings are its verdict."""

    sections: Sequence[Section]

    @property
    def findings(self) -> list[Finding]:
        """Every sentence."""
        return [finding for section in self.sections for finding in section.findings]


class Study(ABC):
    """Draws a conclusion from the runs of a sweep.

    A conclusion depends on nothing but what the runs recorded and measured, not on when they ran or on their
    order on the clock; numbers stand with their uncertainty, and what was looked for and not found is said.
    """

    title: str

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:  # noqa: B027
        """Before anything runs: can this sweep be concluded from?

        Args:
            points: what distinguishes each planned run, dotted key to value.

        Raises:
            ValueError: if not, with what the sweep lacks.
        """

    @abstractmethod
    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        """The conclusion from all runs of the plan, in the order of the sweep."""


def with_error(mean: float, error: float, digits: int = 1) -> str:
    """A number and its standard error with so many decimals, or as many as the error needs to be seen."""
    if 0 < error < math.inf:
        digits = max(digits, min(4, math.ceil(-math.log10(error))))
    return f"{round(mean, digits) + 0.0:.{digits}f} ± {error:.{digits}f}"  # -0.0 becomes 0.0

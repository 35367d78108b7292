"""What a page shows: figures and sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """A figure with its title and a caption that says what is seen."""

    title: str
    figure: Figure
    caption: str = ""


@dataclass(frozen=True)
class Finding:
    """A sentence with numbers: a result, a note about how it was obtained, or a warning."""

    text: str
    level: Literal["result", "note", "warning"] = "result"

"""Stages of learning in figures and sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from observatory.ntk.stages import Kind, Stages, find_stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: dict[Kind, str] = {"compression": "tab:blue", "plateau": "0.6", "structure formation": "tab:orange"}
WORDS: dict[Kind, str] = {"compression": "falls", "plateau": "rests", "structure formation": "rises"}


def stages_or_none(steps: ArrayLike, values: ArrayLike, *, noise: float = 0.0) -> Stages | None:
    """The stages of a record, or None where it has too few finite looks for any."""
    finite = np.isfinite(np.asarray(values, dtype=float))
    return find_stages(steps, values, noise=noise) if finite.sum() >= 7 else None


def mark_stages(axis: Axes, stages: Stages | None) -> None:
    """Shade each stage of a figure whose x axis is the step."""
    for stage in stages or ():
        axis.axvspan(stage.start, stage.stop, color=COLOURS[stage.kind], alpha=0.08, lw=0, zorder=0)


def in_words(stages: Stages, *, entropy: bool = True) -> str:
    """ "plateau (steps 0-12), compression (12-340), ..."; of other series that it rests, falls or rises."""
    parts = [
        f"{stage.kind if entropy else WORDS[stage.kind]} ({_step(stage.start)}-{_step(stage.stop)})"
        for stage in stages
    ]
    return ", ".join(parts)


def _step(step: float) -> str:
    return f"{step:.0f}" if math.isclose(step, round(step)) else f"{step:.3g}"

"""Finished runs made by hand: a record of given values, and metrics beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from observatory.records import Quantity, RunRecord
from observatory.studies import Conclusion, FinishedRun


def finished_run(
    folder: Path,
    point: Mapping[str, Any],
    *,
    instrument: str = "ntk",
    steps: Sequence[int] = (0,),
    quantities: Mapping[str, ArrayLike],
    coordinates: Mapping[str, list[str]] | None = None,
    settings: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    curves: Mapping[str, Sequence[float]] | None = None,
) -> FinishedRun:
    """Values of each quantity (steps, ...), last values of metrics, and curves with one value per step."""
    record = RunRecord(folder / "observatory", folder.name)
    values = {name: np.asarray(v, dtype=float) for name, v in quantities.items()}
    dims = list(coordinates or {}) or ["rank"]
    made = {name: Quantity(tuple(dims[: v.ndim - 1]), "1", "given") for name, v in values.items()}
    part = record.instrument(instrument, made, settings=settings)
    for k, step in enumerate(steps):
        part.append(step, {name: v[k] for name, v in values.items()}, coordinates=coordinates or {})
    record.close()
    if curves:
        rows = ["step," + ",".join(curves)]
        rows += [",".join(map(str, (k, *row))) for k, row in enumerate(zip(*curves.values(), strict=True))]
        (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    return FinishedRun(folder.name, dict(point), dict(metrics or {}), folder)


def text_of(conclusion: Conclusion) -> str:
    return "\n".join(finding.text for finding in conclusion.findings)


def drawn(conclusion: Conclusion) -> list[str]:
    """Titles of the figures, each rendered."""
    panels = [panel for section in conclusion.sections for panel in section.panels]
    for panel in panels:
        panel.figure.draw_without_rendering()
    return [panel.title for panel in panels]

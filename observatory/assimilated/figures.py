"""Figures of a fit of trajectories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from observatory.records import Panel

if TYPE_CHECKING:
    from observatory.records import Run


def panels(run: Run) -> list[Panel]:
    """Parameters and misfit against steps; at the end data with predictions, and correlations."""
    made = [_path(run)] if "value" in run and len(run["value"]) > 1 else []
    if "prediction" in run and len(run["prediction"]):
        made.append(_predictions(run))
    if "correlation" in run and len(run["correlation"]):
        made.append(_correlations(run))
    return made


def _axes(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _path(run: Run) -> Panel:
    value, names = run["value"], run["value"].coordinates["parameter"]
    columns = min(len(names) + 1, 4)
    rows = -(-(len(names) + 1) // columns)
    figure, axes = _axes(rows, columns, 2.6 * columns, 2.3 * rows)
    for axis in axes.ravel()[len(names) + 1 :]:
        axis.remove()
    for k, (axis, name) in enumerate(zip(axes.ravel(), names, strict=False)):
        axis.plot(value.steps, value.values[:, k], "-", lw=1.6, color="C0")
        spread = run["spread"].values[:, k]
        low, high = value.values[:, k] - spread, value.values[:, k] + spread
        axis.fill_between(value.steps, low, high, alpha=0.2, color="C0", lw=0)
        axis.set_title(name)
        axis.set_xlabel("step")
    axis = axes.ravel()[len(names)]
    axis.plot(run["misfit"].steps, run["misfit"].values, "-", lw=1.6, color="C3")
    axis.axhline(1, color="0.6", lw=0.8)
    axis.set_yscale("log")
    axis.set_title("χ² / N")
    axis.set_xlabel("step")
    return Panel(
        "Recovered parameters",
        figure,
        "Parameters during the fit (shaded: standard deviation over trajectories with values of their own), "
        "and the misfit, 1 for a right model with the right noise.",
    )


def _predictions(run: Run) -> Panel:
    time, seen = run["time"].values[-1], run["observation"].values[-1]
    predicted, names = run["prediction"].values[-1], run["prediction"].coordinates["component"]
    shown = min(len(seen), 2)
    figure, axes = _axes(len(names), shown, 4.4 * shown, 1.7 * len(names) + 0.5)
    for system in range(shown):
        for row, name in enumerate(names):
            axis = axes[row, system]
            axis.plot(time, seen[system, :, row], ".", ms=3, color="0.55", label="observed")
            axis.plot(time, predicted[system, :, row], "-", lw=1.2, color="C0", label="fitted")
            axis.set_ylabel(name)
        axes[0, system].set_title(f"trajectory {system}")
        axes[-1, system].set_xlabel("time")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return Panel("Data and fit", figure, "Observations and the solution that was fitted to them.")


def _correlations(run: Run) -> Panel:
    correlation, names = run["correlation"].values[-1], run["correlation"].coordinates["parameter"]
    size = 1.6 + 0.45 * len(names)
    figure, axes = _axes(1, 1, size + 0.8, size)
    image = axes[0, 0].imshow(correlation, vmin=-1, vmax=1, cmap="RdBu_r")
    axes[0, 0].set_xticks(range(len(names)), names, rotation=45)
    axes[0, 0].set_yticks(range(len(names)), names)
    for i, j in np.ndindex(correlation.shape):
        shade = "white" if abs(correlation[i, j]) > 0.6 else "black"
        axes[0, 0].text(j, i, f"{correlation[i, j]:.2f}", ha="center", va="center", fontsize=7, color=shade)
    figure.colorbar(image, ax=axes[0, 0], shrink=0.8)
    return Panel("Correlation of the estimates", figure, "Near ±1 only a combination is determined.")

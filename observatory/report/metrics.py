"""The training metrics that lie beside a record, from Lightning's CSV file or TensorBoard's events."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from observatory.records import Panel

Curves = dict[str, tuple[list[float], list[float]]]  # tag to steps and values


def metrics_panel(folder: Path) -> list[Panel]:
    """One panel with a plot per metric (loss, accuracy) and a curve per split; [] if nothing was logged."""
    curves = read_metrics(folder)
    groups: dict[str, Curves] = defaultdict(dict)
    for tag, curve in curves.items():
        split, _, metric = tag.partition("/")
        if split in ("train", "val", "test") and curve[0]:
            groups[metric.removesuffix("_step").removesuffix("_epoch")][tag] = curve
    if not groups:
        return []
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(3.8 * min(len(groups), 2) + 0.4, 2.9 * ((len(groups) + 1) // 2)), layout="constrained"
    )
    axes = figure.subplots((len(groups) + 1) // 2, min(len(groups), 2), squeeze=False).ravel()
    for axis in axes[len(groups) :]:
        axis.remove()
    for axis, (metric, several) in zip(axes, groups.items(), strict=False):
        for tag, (steps, values) in several.items():
            alone = len(steps) == 1
            axis.plot(
                steps, values, "o" if alone else "-", lw=1.1, label=tag.partition("/")[0] if alone else tag
            )
        axis.set_xlabel("optimizer step")
        axis.set_title(metric.replace("$", r"\$"))
        if "loss" in metric and all(v > 0 for _, values in several.values() for v in values):
            axis.set_yscale("log")
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return [
        Panel("Metrics", figure, "Metrics of training, validation and test against the number of updates.")
    ]


def read_metrics(folder: Path) -> Curves:
    """Steps and values of everything that was logged into a run's folder, by tag."""
    return _from_csv(folder / "metrics.csv") or _from_events(folder)


def _from_csv(file: Path) -> Curves:
    curves: Curves = {}
    if not file.is_file():
        return curves
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            for tag, value in row.items():
                if tag not in ("step", "epoch") and value:
                    steps, values = curves.setdefault(tag, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(value))
    return curves


def _from_events(folder: Path) -> Curves:
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    found = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags}  # a resumed run's count
    return {
        tag: ([float(step) for step in sorted(points)], [points[step] for step in sorted(points)])
        for tag, points in found.items()
    }

"""`observatory compare`: several runs on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from observatory.records import Panel, Run, open_run
from observatory.report import Section, read_metrics, write_page
from observatory.report.hparams import flattened

ABSENT = "–"


def write_comparison(paths: Sequence[str | Path], output: str | Path = "comparison.html") -> Path:
    """Write a page with what distinguishes the runs, where they ended, and their curves side by side.

    Args:
        paths: folders of runs with a record.
        output: .html or .md.

    Raises:
        FileNotFoundError: if a folder holds no record.
        ValueError: if there are fewer than two runs, or `output` has another suffix.
    """
    folders = [Path(path) for path in paths]
    if len(folders) < 2:
        raise ValueError(f"at least two runs can be compared, got {len(folders)}")
    runs = dict(zip(_names(folders), map(open_run, folders), strict=True))
    configs = {name: _settings(_beside(run) / "config.yaml") for name, run in runs.items()}
    metrics = {name: _last_metrics(_beside(run)) for name, run in runs.items()}
    quantities = {name: _ends(run) for name, run in runs.items()}
    sections = [
        _table("Settings", "Those in which the runs differ.", _differing(configs)),
        _table("Metrics", "The last value of each.", metrics),
        _table("Quantities", "From the first look to the last.", quantities),
        *_curves(runs),
    ]
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    return write_page(
        "Comparison", [s for s in sections if s.rows or s.panels], target, subtitle=", ".join(runs)
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError("the same run is given twice")


def _beside(run: Run) -> Path:
    return run.directory.parent if run.directory.name == "observatory" else run.directory


def _settings(file: Path) -> dict[str, str]:
    """A configuration with dotted keys, without where it was written."""
    config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    config.get("trainer", {}).pop("logger", None)
    return {key: str(value) for key, value in flattened(config).items()}


def _differing(configs: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    keys = {key: None for config in configs.values() for key in config}
    differ = [key for key in keys if len({config.get(key, ABSENT) for config in configs.values()}) > 1]
    return {name: {key: config.get(key, ABSENT) for key in differ} for name, config in configs.items()}


def _last_metrics(folder: Path) -> dict[str, str]:
    curves = read_metrics(folder)
    return {
        tag: f"{values[-1]:.4g}"
        for tag, (_, values) in sorted(curves.items())
        if tag.partition("/")[0] in ("train", "val", "test") and values
    }


def _scalars(run: Run) -> list[str]:
    return [name for name in run if run[name].values.ndim == 1 and len(run[name])]


def _ends(run: Run) -> dict[str, str]:
    arrays = {name: run[name].values for name in _scalars(run)}
    return {name: f"{v[0]:.4g} → {v[-1]:.4g}" if len(v) > 1 else f"{v[-1]:.4g}" for name, v in arrays.items()}


def _table(title: str, text: str, columns: Mapping[str, Mapping[str, str]]) -> Section:
    """A column per run, a row per key of any of them."""
    keys = {key: None for column in columns.values() for key in column}
    rows = [[key, *(column.get(key, ABSENT) for column in columns.values())] for key in keys]
    return Section(title, text, header=["", *columns], rows=rows)


def _curves(runs: Mapping[str, Run]) -> list[Section]:
    """For each instrument that all runs have, the scalars that all recorded."""
    first, *others = runs.values()
    shared = [name for name in _scalars(first) if all(name in _scalars(other) for other in others)]
    shared = [name for name in shared if any(len(run[name]) > 1 for run in runs.values())]
    return [
        Section(instrument, panels=[_panel(runs, n) for n in shared if n.rpartition("/")[0] == instrument])
        for instrument in dict.fromkeys(name.rpartition("/")[0] for name in shared)
    ]


def _panel(runs: Mapping[str, Run], name: str) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axis = figure.subplots()
    colours = [f"C{k}" for k in range(10)] if len(runs) <= 10 else list(_viridis(len(runs)))
    for (label, run), colour in zip(runs.items(), colours, strict=False):
        array = run[name]
        axis.plot(
            array.steps, array.values, "o-", ms=2.5, lw=1, color=colour, label=label.replace("$", r"\$")
        )
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(left=0)
    unit = "" if array.unit == "1" else f" ({array.unit})"
    axis.set(xlabel="optimizer step", ylabel=f"{name.rpartition('/')[2]}{unit}".replace("$", r"\$"))
    axis.spines[["top", "right"]].set_visible(False)
    if len(runs) <= 10:
        axis.legend(frameon=False, fontsize=8)
    return Panel(name, figure, array.definition)


def _viridis(count: int) -> np.ndarray:
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0, 0.92, count))

"""The page of one run."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from observatory.records import Finding, LabelledArray, Panel, Run, open_run
from observatory.report.metrics import metrics_panel
from observatory.report.page import Section, write_page

HEADLINES = 3  # of each instrument at the top of the page
TRUSTED = "observatory."  # only classes of this package are imported because a record names them


def write_report(path: str | Path, *, output: str | Path | None = None) -> Path:
    """Write the page of a run: `report.html` in the run's folder, or `output` (.html or .md).

    Args:
        path: folder of the run, or its `observatory` folder.
        output: where to write.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: if there is no record.
        ValueError: if `output` ends neither in .html nor in .md.
    """
    run = open_run(path)
    beside = run.directory.parent if run.directory.name == "observatory" else run.directory
    target = Path(output) if output is not None else beside / "report.html"
    instruments = [_instrument_section(run, name) for name in run.instruments]
    sections = [
        Section("Findings", findings=[f for section in instruments for f in _headlines(section.findings)]),
        *instruments,
        *_training(beside),
        _looks_section(run),
        *_provenance(run, beside),
    ]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.metadata.get("created", 0)))
    return write_page(
        _title(beside), sections, target, subtitle=f"{run.metadata.get('module', 'run')}, {when}"
    )


def _headlines(findings: Sequence[Finding]) -> list[Finding]:
    """All warnings, and the first results."""
    results = [f for f in findings if f.level == "result"][:HEADLINES]
    return [f for f in findings if f.level == "warning"] + results


def _title(folder: Path) -> str:
    """runs/digits/version_0 is "digits, version_0"."""
    return f"{folder.parent.name}, {folder.name}" if folder.name.startswith("version_") else folder.name


def _instrument_section(run: Run, name: str) -> Section:
    """What the instrument's class has to say and to show; plain curves where it cannot be asked."""
    meta, part = run.meta(name), run.instrument(name)
    source = _class_of(str(meta.get("source", "")))
    findings: list[Finding] = []
    panels: list[Panel] = []
    if source is None:
        findings.append(Finding(f"{name}: figures are plain curves, since its class is not imported", "note"))
    else:
        try:
            findings = [Finding(f"{name}: {f.text}", f.level) for f in source.findings(part)]
            panels = list(source.figures(part))
        except Exception as error:  # one instrument must not cost the page
            findings.append(
                Finding(f"{name}: its figures failed: {type(error).__name__}: {error}", "warning")
            )
    for event in run.events(name):
        if event.get("event") == "failure":
            findings.append(Finding(f"{name} was switched off: {event.get('reason')}", "warning"))
    panels = panels or [
        _curve(part[key]) for key in part if part[key].values.ndim == 1 and len(part[key]) > 1
    ]
    rows = [_row(key, part[key]) for key in part]
    return Section(
        name, _heading(source), findings, panels, ("quantity", "last value", "unit", "definition"), rows
    )


def _heading(source: Any) -> str:
    return "" if source is None else str(source.__doc__ or "").strip().split("\n")[0]


def _class_of(source: str) -> Any:
    """The class "module:Class", if it belongs to this package or its module is loaded already."""
    module, _, name = source.partition(":")
    if module not in sys.modules and not module.startswith(TRUSTED):
        return None
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found if hasattr(found, "figures") and hasattr(found, "findings") else None


def _row(key: str, array: LabelledArray) -> tuple[str, str, str, str]:
    if not len(array):
        return key, "", array.unit, array.definition
    last = np.asarray(array.values[-1])
    shown = f"{last:.6g}" if last.ndim == 0 else f"array of shape {' × '.join(map(str, last.shape))}"
    return key, shown, array.unit, array.definition


def _curve(array: LabelledArray) -> Panel:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.0), layout="constrained")
    axis = figure.subplots()
    axis.plot(array.steps, array.values, "o-", ms=3)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(left=0)
    axis.set_xlabel("optimizer step")
    axis.set_ylabel(f"{array.name} ({array.unit})".replace("$", r"\$"))
    axis.spines[["top", "right"]].set_visible(False)
    return Panel(array.name, figure, array.definition)


def _looks_section(run: Run) -> Section:
    """Planned, taken and postponed looks, and what they cost."""
    rows = []
    for name in run.instruments:
        looks = [event for event in run.events(name) if event.get("event") == "look"]
        seconds = np.array([event["seconds"] for event in looks]) if looks else np.zeros(0)
        late = sum(event.get("event") == "postponed" for event in run.events(name))
        free = sum(event["seconds"] for event in looks if event.get("free"))
        limit = run.meta(name)["settings"].get("max_overhead")
        rows.append(
            (
                name,
                str(len(looks)),
                str(late),
                f"{np.median(seconds) * 1e3:.1f} ms" if looks else "",
                f"{seconds.sum() - free:.2f} s",
                f"{free:.2f} s",
                "none" if limit is None else f"{100 * limit:.3g} %",
            )
        )
    header = ("instrument", "looks", "postponed", "median cost", "total", "first and last", "budget")
    text = (
        "A look that the budget does not allow is postponed, at most to the next one planned, which then "
        "stands for both. The budget is a share of the training time; "
        "the first and the last look are outside it."
    )
    return Section("Looks", text, header=header, rows=rows)


def _training(beside: Path) -> list[Section]:
    panels = metrics_panel(beside)
    return [Section("Training", "What the loop itself logged.", panels=panels)] if panels else []


def _provenance(run: Run, beside: Path) -> Sequence[Section]:
    metadata = run.metadata
    rows = [(name, str(version)) for name, version in metadata.get("versions", {}).items()]
    rows += [
        (key, str(metadata[key]))
        for key in ("commit", "seed", "world_size", "platform", "id")
        if metadata.get(key)
    ]
    sections = [Section("Provenance", header=("what", "value"), rows=rows)]
    config = beside / "config.yaml"
    if config.is_file():
        sections.append(Section("Configuration", "As resolved by the command line.", code=config.read_text()))
    return sections

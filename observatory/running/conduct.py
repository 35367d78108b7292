"""`observatory run`: an experiment file from reading to the page of its conclusion."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from observatory.data import MissingData
from observatory.fitting import quiet
from observatory.report import Section, write_page
from observatory.running.configured import ConfiguredRun
from observatory.running.execution import RunFolder
from observatory.running.experiment import Experiment, read_experiment
from observatory.running.plan import PlannedRun, covering, plan_runs, validate
from observatory.running.progress import Progress
from observatory.running.stack import Unit, finish_trained, units_of
from observatory.running.submission import Cluster, execute_as_jobs
from observatory.studies import Conclusion, FinishedRun, Study


def run_experiment(
    name: str | Path,
    *,
    quick: bool = False,
    dry_run: bool = False,
    output: str | Path = "runs",
    submit: Cluster | None = None,
) -> int:
    """Execute an experiment, or with `dry_run` resolve every configuration of it and print the plan.

    Args:
        name: a file, or the name of a shipped experiment.
        quick: its smoke setting.
        dry_run: run nothing.
        output: folder of studies; a study continues where it was when it was killed. A single run goes where
            its logger says.
        submit: execute the runs of a study as jobs of this cluster, through submitit.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: if there is no such experiment, or data are missing.
        ValueError: if something in it is wrong.
        RuntimeError: if jobs failed; the other runs are finished.
    """
    quiet()
    experiment = read_experiment(name, quick=quick)
    if experiment.study:
        return _conduct(experiment, Path(output), dry_run=dry_run, submit=submit)
    if dry_run:
        validate(experiment.base)
        print(f"{experiment.name}: one run, valid")
        return 0
    cli = ConfiguredRun(experiment.base)
    try:
        cli.trainer.fit(cli.model, cli.datamodule)
    except MissingData as error:
        raise FileNotFoundError(str(error)) from error
    cli.after_fit()
    return 0


def _conduct(experiment: Experiment, output: Path, *, dry_run: bool, submit: Cluster | None) -> int:
    runs = plan_runs(experiment)
    study = _study(experiment.study)
    study.check([run.point for run in runs])
    for run in covering(runs):  # a hundred combinations of ten values would take a minute
        validate(run.config)
    folders = [RunFolder(output / experiment.name / run.name, run) for run in runs]
    if dry_run:
        _print_plan(experiment, folders)
        return 0
    for folder in folders:
        folder.claim()
    try:
        finished = _execute_all(experiment, folders, submit)
    except MissingData as error:
        raise FileNotFoundError(str(error)) from error
    conclusion = study.conclude(finished)
    for page in _write(output / experiment.name, study.title, conclusion, runs):
        print(page)
    return 0


def _execute_all(
    experiment: Experiment, folders: Sequence[RunFolder], submit: Cluster | None
) -> list[FinishedRun]:
    """Every run that is not finished, those of equal shape as one stack, under one line of progress."""
    finish_trained(folders)
    missing = [folder for folder in folders if folder.finished() is None]
    units = units_of(missing) if experiment.stack else [Unit([folder]) for folder in missing]
    with Progress(experiment.name, total=len(folders), done=len(folders) - len(missing)) as progress:
        if submit is not None:
            execute_as_jobs(units, submit, experiment.submitit, progress)
        else:
            for unit in units:
                unit.execute(progress.of(unit.name, len(unit.folders)))
    return [finished for folder in folders if (finished := folder.finished()) is not None]


def _study(spec: dict[str, Any]) -> Study:
    """The object of `study:`; a bare class name is one of observatory.studies.

    Raises:
        ValueError: if there is no such class, or it refuses its arguments.
    """
    module, _, name = str(spec["class_path"]).rpartition(".")
    try:
        cls = getattr(import_module(module or "observatory.studies"), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"study: {spec['class_path']} cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Study)):
        raise ValueError(f"study: {spec['class_path']} is not a Study")
    try:
        return cls(**copy.deepcopy(spec.get("init_args") or {}))
    except TypeError as error:
        raise ValueError(f"study: {error}") from error


def _print_plan(experiment: Experiment, folders: Sequence[RunFolder]) -> None:
    finished = 0
    for folder in folders:
        done = folder.finished() is not None
        finished += done
        print(f"{folder.path}{'  finished' if done else ''}")
    swept = " x ".join(
        f"{len(values)} {key}" for lists in experiment.sweep.values() for key, values in lists.items()
    )
    print(f"{experiment.name}: {len(folders)} runs ({swept}), every value valid, {finished} of them finished")


def _write(folder: Path, title: str, conclusion: Conclusion, runs: Sequence[PlannedRun]) -> tuple[str, str]:
    """The page, and the same findings for machines; equal bytes for equal conclusions."""
    import yaml

    plan = "".join(
        f"{run.name}: {yaml.safe_dump(run.point, default_flow_style=True, width=10**6)}" for run in runs
    )
    sections = [*conclusion.sections, Section("Runs", "What distinguishes each run.", code=plan)]
    page = write_page(title, sections, folder / "report.html", subtitle=f"{folder.name}, {len(runs)} runs")
    write_page(title, sections, folder / "report.md", subtitle=f"{folder.name}, {len(runs)} runs")
    content = {
        "findings": [{"level": finding.level, "text": finding.text} for finding in conclusion.findings],
        "tables": {s.title: [list(s.header), *map(list, s.rows)] for s in conclusion.sections if s.rows},
    }
    (folder / "conclusion.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return "\n".join(f.text for f in conclusion.findings if f.level != "note"), f"report: {page}"

"""Experiment files: an ordinary configuration of a run, or a study of many.

An ordinary experiment is what `observatory fit --config` takes (`model:`, `data:`, `trainer:`, `observe:`,
`seed_everything:`), and may have a `quick:` beside it. A study is

    base:                                   # such a configuration, or the name of an experiment that is one
      seed_everything: 0
      model: {class_path: observatory.training.Supervised, init_args: {...}}
      data: {class_path: observatory.data.Digits, init_args: {flat: true}}
      trainer: {max_epochs: 30, accelerator: cpu, devices: 1}
      observe: {ntk: {class_path: observatory.callbacks.CollectiveVariables}}
    sweep:                                  # dotted key of the configuration to its values: all combinations
      model.init_args.network.init_args.widths: [[64, 16, 10], [64, 64, 10]]
      seed_everything: [0, 1, 2]
    study:                                  # draws the conclusion from the finished runs
      class_path: observatory.studies.SeedsAndWidth
      init_args: {}
    quick:                                  # for `--quick`: less than a minute
      trainer.max_epochs: 2
      sweep.seed_everything: [0, 1]         # another list for a key that is swept
      study.init_args.resamples: 100        # another setting of the study
    stack: false                            # train every run alone; default those of equal shape as one stack
    submitit: {timeout_min: 60}             # of `--submit`, as submitit's `update_parameters` takes them

A sweep whose keys are `product` and `zip` takes all combinations of the lists under the first with the rows
of the lists under the second, which are equally long: keys that change together. Runs are written to
`OUTPUT/EXPERIMENT/RUN`, with their checkpoints, records and pages, whatever the logger of the base; the
conclusion to `report.html`, `report.md` and `conclusion.json` in `OUTPUT/EXPERIMENT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from observatory.running.sweep import split_ways, with_values

STUDY_KEYS = ("base", "sweep", "study", "quick", "stack", "submitit")
QUICK: dict[str, Any] = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 50}  # unless the file says


@dataclass(frozen=True)
class Experiment:
    """What a file says: the configuration of one run, how it is varied, and who draws the conclusion."""

    name: str
    base: dict[str, Any]  # a configuration as `observatory fit --config` takes it
    sweep: dict[str, dict[str, list]] = field(default_factory=dict)  # way to dotted key to values
    study: dict[str, Any] = field(default_factory=dict)  # class_path and init_args; empty for a single run
    stack: bool = True  # runs of equal shape are trained as one
    submitit: dict[str, Any] = field(default_factory=dict)  # parameters of jobs


def read_experiment(name: str | Path, *, quick: bool = False) -> Experiment:
    """Read an experiment from a file or, where there is none, from those shipped with the package.

    Args:
        name: a path, or the name of a shipped experiment with or without ".yaml".
        quick: with the file's overrides for a trial of less than a minute; the results go to a folder of
            their own.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if it is not an experiment.
    """
    stem = Path(name).stem
    content = _content(name)
    overrides = content.pop("quick", None) or {}
    if "base" not in content:
        if misplaced := {"sweep", "study"} & set(content):
            raise ValueError(f"{name}: {misplaced.pop()}: needs base:, the configuration that is varied")
        base = with_values(content, overrides or QUICK) if quick else content
        return Experiment(f"{stem}-quick" if quick else stem, base)
    experiment = _study(str(name), stem, content)
    return _quick(experiment, overrides) if quick else experiment


def _content(name: str | Path) -> dict[str, Any]:
    path = Path(name)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        shipped = files("observatory.experiments") / f"{path.name.removesuffix('.yaml')}.yaml"
        if not shipped.is_file():
            known = sorted(file.name for file in files("observatory.experiments").iterdir())
            names = ", ".join(name for name in known if name.endswith(".yaml"))
            raise FileNotFoundError(
                f"there is no file {path} and no shipped experiment of that name ({names})"
            )
        text = shipped.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a mapping of model:, data:, trainer: or of base:, sweep:, study:")
    return content


def _study(name: str, stem: str, content: dict[str, Any]) -> Experiment:
    if stray := set(content) - set(STUDY_KEYS):
        allowed = ", ".join(STUDY_KEYS)
        raise ValueError(f"{name}: {', '.join(sorted(stray))} is no part of a study, which has {allowed}")
    base = content["base"]
    if isinstance(base, str):
        beside = Path(name).parent / base
        base = _content(beside if beside.is_file() else base)
        base.pop("quick", None)
    if not isinstance(base, Mapping) or "base" in base:
        raise ValueError(f"{name}: base: must be the configuration of one run, or the name of its file")
    study = content.get("study") or {}
    if not isinstance(study, Mapping) or "class_path" not in study:
        raise ValueError(f"{name}: study: must name a class of observatory.studies by class_path")
    sweep = content.get("sweep")
    if not isinstance(sweep, Mapping) or not sweep:
        raise ValueError(f"{name}: sweep: must map dotted keys of the configuration to lists of values")
    stack, jobs = content.get("stack", True), content.get("submitit") or {}
    if not isinstance(stack, bool) or not isinstance(jobs, Mapping):
        raise ValueError(f"{name}: stack: is true or false, submitit: a mapping; got {stack!r} and {jobs!r}")
    return Experiment(stem, dict(base), split_ways(sweep), dict(study), stack, dict(jobs))


def _quick(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """`sweep.KEY` replaces a list, `study.KEY` a setting of the study, any other key one of the runs."""
    parts: dict[str, dict[str, Any]] = {"sweep": {}, "study": {}, "base": {}}
    for key, value in (overrides or QUICK).items():
        first, _, rest = key.partition(".")
        part, own = (first, rest) if first in ("sweep", "study") else ("base", key)
        parts[part][own] = value
    swept = {key for lists in experiment.sweep.values() for key in lists}
    if unknown := set(parts["sweep"]) - swept:
        raise ValueError(f"quick: sweep.{unknown.pop()} is not swept ({', '.join(sorted(swept))})")
    return replace(
        experiment,
        name=f"{experiment.name}-quick",
        base=with_values(experiment.base, parts["base"]),
        sweep={
            way: {key: parts["sweep"].get(key, values) for key, values in lists.items()}
            for way, lists in experiment.sweep.items()
        },
        study=with_values(experiment.study, parts["study"]),
    )

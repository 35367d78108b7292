"""Callbacks from the `observe:` mapping of a YAML file."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

import observatory.callbacks
from observatory.callbacks.callback import ObservingCallback


def callbacks_from_yaml(path: str | Path) -> list[Callback]:
    """The callbacks of `observe:`, each named after its key.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no `observe:` mapping, a class or an argument in it is unknown, or two entries
            name themselves the same.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file.resolve()}")
    content = yaml.safe_load(file.read_text())
    if not isinstance(content, dict) or not isinstance(content.get("observe"), dict):
        raise ValueError(f"{file} has no mapping `observe:` of names to class_path and init_args")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--observe", type=dict[str, Callback])
    named = {"observe": {key: named_after(key, spec) for key, spec in content["observe"].items()}}
    callbacks = list(parser.instantiate(parser.parse_object(named)).observe.values())
    watching = [one for one in callbacks if isinstance(one, ObservingCallback)]
    names = [station.instrument.name for one in watching for station in one.observer.stations]
    if twice := {name for name in names if names.count(name) > 1}:  # the Trainer would refuse both
        raise ValueError(f"two entries of observe: are called {twice.pop()!r}; give one another name:")
    return callbacks


def named_after(key: str, spec: Any) -> Any:
    """`spec` with `name: <key>` among its arguments, if its class watches and it does not name itself."""
    if isinstance(spec, str):
        spec = {"class_path": spec}
    if not isinstance(spec, dict) or not _watches(spec.get("class_path")):
        return spec
    return {**spec, "init_args": {"name": key, **(spec.get("init_args") or {})}}


def _watches(class_path: Any) -> bool:
    module, _, name = str(class_path).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module) if module else observatory.callbacks, name, None)
    except ImportError:
        return False  # the parser says it better
    return isinstance(cls, type) and issubclass(cls, ObservingCallback)

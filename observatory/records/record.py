"""Writing the record of one run."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from observatory.records.growing import HEADER_BYTES, GrowingArray, begun, read_dtype
from observatory.records.quantity import Quantity
from observatory.records.run import Run

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
PACKAGES = ("training-observatory", "torch", "lightning", "numpy")
_NAME = re.compile(r"[^/\0]+(/[^/\0]+)*")


class RunRecord:
    """A folder `directory` with `run.json`, and one folder per instrument.

    Args:
        directory: made if it does not exist.
        run_id: tells this run from others; a folder that holds another run is refused.
        metadata: what else to say of the run, as JSON values.

    Raises:
        ValueError: if the folder holds the record of another run.
        OSError: if the disk refuses.
    """

    def __init__(self, directory: Path, run_id: str, metadata: Mapping[str, Any] | None = None) -> None:
        self.directory = directory
        self._instruments: dict[str, InstrumentRecord] = {}
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "run.json"
        if file.exists():
            found = json.loads(file.read_text()).get("id")
            if found != run_id:
                raise ValueError(
                    f"{directory} holds the record of another run ({found}, this one is {run_id})"
                )
        else:
            write_json(file, {"format": FORMAT, "id": run_id, **_surroundings(), **(metadata or {})})

    def instrument(
        self,
        name: str,
        quantities: Mapping[str, Quantity],
        *,
        source: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> InstrumentRecord:
        """The part of the record that instrument `name` writes.

        Args:
            name: folder; may contain "/" but not lead out of the record.
            quantities: what may be appended.
            source: "module:Class" that supplies figures and findings for the report.
            settings: configuration worth keeping, as JSON values.

        Raises:
            ValueError: if the name is taken, or leads out of the record.
        """
        if name in self._instruments:
            raise ValueError(f"two instruments are called {name!r}; give one of them another name=")
        meta = {"format": FORMAT, "source": source, "settings": dict(settings or {})}
        self._instruments[name] = InstrumentRecord(self.directory, checked(name), quantities, meta)
        return self._instruments[name]

    def truncate_after(self, step: int, instrument: str = "") -> None:
        """Drop what was recorded at later steps than `step`, by one instrument or by all."""
        folder = self.directory / instrument
        for file in folder.rglob("*.npy"):
            if file.stat().st_size < HEADER_BYTES:  # killed while it was made
                file.unlink()
            else:
                GrowingArray.drop_after(file, step)
        for file in folder.rglob("events.jsonl"):
            kept = [line for line in _lines(file) if json.loads(line).get("step", 0) <= step]
            replace_text(file, "".join(line + "\n" for line in kept))

    def close(self) -> None:
        """Close all files; safe to call twice."""
        for one in self._instruments.values():
            one.close()
        self._instruments.clear()


class InstrumentRecord:
    """One folder: a growing array per quantity, `meta.json`, and `events.jsonl`."""

    def __init__(
        self, root: Path, name: str, quantities: Mapping[str, Quantity], meta: dict[str, Any]
    ) -> None:
        self.root, self.name = root, name
        self.directory = directory = root / name
        self.quantities = dict(quantities)
        self._meta = meta | {"quantities": {checked(k): asdict(q) for k, q in self.quantities.items()}}
        self._coordinates: dict[str, list[str]] = {}
        self._arrays: dict[str, GrowingArray] = {}
        self._events = -1
        directory.mkdir(parents=True, exist_ok=True)
        self._write_meta()
        self._events = os.open(directory / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(
        self,
        step: int,
        values: Mapping[str, Tensor | NDArray | float],
        *,
        coordinates: Mapping[str, list[str]] | None = None,
    ) -> None:
        """Append one value of each quantity given, and hand it to the operating system before returning.

        If one cannot be appended, or somebody presses Ctrl-C meanwhile, none is: a look is recorded whole.

        Raises:
            ValueError: if a quantity was not declared, or its shape is not that of the records before.
            OSError: if the disk refuses.
        """
        now = time.time()
        before: list[tuple[GrowingArray, int]] = []
        try:
            for name, value in values.items():
                array = _as_array(value)
                if name not in self._arrays:
                    self._arrays[name] = self._open(name, array)
                before.append((self._arrays[name], self._arrays[name].count))
                self._arrays[name].append(step, now, array)
        except BaseException:
            for growing, count in before:
                with suppress(OSError):  # the count in the header may not fit, but then it has not changed
                    growing.cut(count)
            raise
        if coordinates and coordinates != self._coordinates:
            self._coordinates = dict(coordinates)
            self._write_meta()

    def note(self, event: Mapping[str, Any]) -> None:
        """Append one event (a look, a failure) to `events.jsonl`."""
        os.write(self._events, (json.dumps(event) + "\n").encode())

    def history(self) -> Run:
        """What this instrument has recorded so far."""
        return Run(self.root, self.name)

    def close(self) -> None:
        """Close all files; safe to call twice."""
        for array in self._arrays.values():
            array.close()
        self._arrays.clear()
        if self._events >= 0:
            os.close(self._events)
            self._events = -1

    def _open(self, name: str, array: NDArray) -> GrowingArray:
        if name not in self.quantities:
            declared = ", ".join(self.quantities) or "nothing"
            raise ValueError(f"{name!r} is not declared by quantities() ({declared})")
        dims = self.quantities[name].dims
        if len(dims) != array.ndim:
            raise ValueError(f"{name!r} is declared with dims {dims}, got a value of shape {array.shape}")
        path = self.directory / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        return GrowingArray(path, _settled(path, array), array.shape)

    def _write_meta(self) -> None:
        write_json(self.directory / "meta.json", self._meta | {"coordinates": self._coordinates})


def _settled(path: Path, array: NDArray) -> np.dtype:
    """The type of a file that is continued, where it can hold the array; else the array's own."""
    if begun(path):
        value = read_dtype(path)["value"]
        if np.can_cast(array.dtype, value.base, "same_kind"):
            return value.base
    return array.dtype


def checked(name: str) -> str:
    """`name`, if it can be a path inside the record.

    Raises:
        ValueError: if it is empty, absolute, or leads out.
    """
    if not _NAME.fullmatch(name) or {".", ".."} & set(name.split("/")):
        raise ValueError(f"{name!r} cannot be a name in a record: it must be a relative path without '..'")
    return name


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Replace `file` as a whole: a reader sees the old content or the new."""
    replace_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def replace_text(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)


def _as_array(value: Tensor | NDArray | float) -> NDArray:
    if isinstance(value, float | int | np.ndarray | np.generic):
        return np.asarray(value)
    tensor = value.detach()
    return (
        (tensor.float() if tensor.dtype.itemsize < 4 and tensor.is_floating_point() else tensor).cpu().numpy()
    )


def _lines(file: Path) -> list[str]:
    """Whole lines; a process killed while writing may have left a torn one at the end."""
    lines = []
    for line in file.read_text().split("\n")[:-1]:
        try:
            json.loads(line)
        except ValueError:
            continue
        lines.append(line)
    return lines


def _surroundings() -> dict[str, Any]:
    """Versions, and the commit of the working directory if it is a git checkout."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=2, check=True
        )
        commit = done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {"created": time.time(), "versions": versions, "commit": commit, "platform": platform.platform()}

"""Reading the record of one run, finished or not, or of many."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from observatory.records.growing import begun, read_growing
from observatory.records.labelled import LabelledArray


class Run(Mapping[str, LabelledArray]):
    """The quantities of a record by name: `run["ntk/spectrum"]`. Arrays are memory-mapped, not loaded.

    Args:
        directory: that holds `run.json`.
        prefix: only the quantities of this instrument, by their bare names.
    """

    def __init__(self, directory: Path, prefix: str = "") -> None:
        self.directory = directory
        self.prefix = prefix

    @property
    def metadata(self) -> dict[str, Any]:
        """Id, versions, commit, and what else was said of the run."""
        content: dict[str, Any] = json.loads((self.directory / "run.json").read_text())
        return content

    @property
    def instruments(self) -> list[str]:
        """Names of the instruments that recorded."""
        return sorted(
            str(file.parent.relative_to(self.directory)) for file in self.directory.rglob("meta.json")
        )

    def instrument(self, name: str) -> Run:
        """The quantities of one instrument, by their bare names.

        Raises:
            KeyError: if no such instrument recorded.
        """
        if name not in self.instruments:
            raise KeyError(
                f"no instrument {name!r} in {self.directory}; there are {', '.join(self.instruments)}"
            )
        return Run(self.directory, name)

    def meta(self, instrument: str) -> dict[str, Any]:
        """What is said of an instrument: its class, settings, quantities and coordinates."""
        content: dict[str, Any] = json.loads((self.directory / instrument / "meta.json").read_text())
        return content

    def events(self, instrument: str) -> list[dict[str, Any]]:
        """Looks, postponements and failures of an instrument, in order."""
        file = self.directory / instrument / "events.jsonl"
        events = []
        for line in file.read_text().split("\n") if file.exists() else []:
            try:
                events.append(json.loads(line))
            except ValueError:
                continue  # empty, or torn by a killed process
        return events

    def __getitem__(self, name: str) -> LabelledArray:
        full = f"{self.prefix}/{name}" if self.prefix else name
        instrument = next((i for i in self._scope() if full.startswith(f"{i}/")), None)
        file = self.directory / f"{full}.npy"
        if instrument is None or not begun(file):
            raise KeyError(f"{name!r} is not in the record {self.directory}; there are {', '.join(self)}")
        records = read_growing(file)
        meta = self.meta(instrument)
        quantity = meta["quantities"][full[len(instrument) + 1 :]]
        dims = tuple(quantity["dims"])
        return LabelledArray(
            name=name,
            values=records["value"],
            steps=records["step"],
            times=records["time"],
            dims=("step", *dims),
            coordinates={dim: names for dim, names in meta["coordinates"].items() if dim in dims},
            unit=quantity["unit"],
            definition=quantity["definition"],
        )

    def _scope(self) -> list[str]:
        return [self.prefix] if self.prefix else sorted(self.instruments, key=len, reverse=True)

    def __iter__(self) -> Iterator[str]:
        for instrument in sorted(self._scope()):
            for quantity in self.meta(instrument)["quantities"]:
                if begun(self.directory / instrument / f"{quantity}.npy"):
                    yield quantity if self.prefix else f"{instrument}/{quantity}"

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r}: {', '.join(self) or 'empty'})"


def open_run(path: str | Path) -> Run:
    """The record of a run: its folder (such as runs/digits/version_0) or the `observatory` folder inside.

    Raises:
        FileNotFoundError: if there is no record.
    """
    path = Path(path)
    for directory in (path, path / "observatory"):
        if (directory / "run.json").is_file():
            return Run(directory)
    inside = sorted(str(file.parent) for file in path.glob("**/run.json"))[:3]
    hint = f"; did you mean {' or '.join(inside)}?" if inside else ""
    raise FileNotFoundError(f"there is no record (run.json) in {path} or in {path / 'observatory'}{hint}")


class Runs(Mapping[str, LabelledArray]):
    """Many runs as one: arrays get a leading dim "run" and are aligned on the union of steps, with NaN."""

    def __init__(self, runs: Sequence[Run], names: Sequence[str]) -> None:
        self.runs = list(runs)
        self.names = list(names)

    def __getitem__(self, name: str) -> LabelledArray:
        arrays = [run[name] for run in self.runs]
        steps = np.unique(np.concatenate([array.steps for array in arrays]))
        shapes = {array.values.shape[1:] for array in arrays}
        if len(shapes) > 1:
            raise ValueError(
                f"{name!r} has different shapes in these runs: {', '.join(map(str, sorted(shapes)))}"
            )
        dtype = np.result_type(*(array.values.dtype for array in arrays), np.float32)
        values = np.full((len(arrays), len(steps), *shapes.pop()), np.nan, dtype)
        times = np.full((len(arrays), len(steps)), np.nan)
        for k, array in enumerate(arrays):
            at = np.searchsorted(steps, array.steps)
            values[k, at], times[k, at] = array.values, array.times
        first = arrays[0]
        return LabelledArray(
            name=name,
            values=values,
            steps=steps,
            times=times,
            dims=("run", *first.dims),
            coordinates=first.coordinates | {"run": self.names},
            unit=first.unit,
            definition=first.definition,
        )

    def __iter__(self) -> Iterator[str]:
        shared = [set(run) for run in self.runs]
        return (name for name in self.runs[0] if all(name in names for names in shared))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def open_runs(paths: str | Path | Sequence[str | Path]) -> Runs:
    """Several runs, given by their folders or by a pattern such as "runs/digits/version_*".

    Raises:
        FileNotFoundError: if the pattern matches nothing, or a folder holds no record.
    """
    if isinstance(paths, str | Path):
        found = sorted(glob(str(paths)))
        if not found:
            raise FileNotFoundError(f"nothing matches {paths}")
        paths = [path for path in found if _holds_record(Path(path))]
        if not paths:
            raise FileNotFoundError(f"no folder that matches {found[0]}, ... holds a record")
    return Runs([open_run(path) for path in paths], [str(path) for path in paths])


def _holds_record(path: Path) -> bool:
    return (path / "run.json").is_file() or (path / "observatory" / "run.json").is_file()

"""Where the record of a run lies, and which run it belongs to."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observatory.looking.ranks import rank, warn
from observatory.records import RunRecord, open_run

if TYPE_CHECKING:
    from observatory.observing.station import Station


class _Shared:
    """One record, written by all observers of this process that watch the same run."""

    def __init__(self, record: RunRecord, run_id: str) -> None:
        self.record, self.run_id, self.users = record, run_id, 0


_open: dict[Path, _Shared] = {}


class Logbook:
    """Opens the record of a run: a new one, or the one that a resumed run continues.

    A folder that already holds another run's record keeps it, under another name; nothing is overwritten. A
    run resumed into a new folder begins with a copy of what it continues.
    """

    def __init__(self) -> None:
        self.run_id: str | None = None
        self.directory: Path | None = None
        self._shared: _Shared | None = None

    def open(
        self, directory: Path, stations: Sequence[Station], step: int, metadata: Mapping[str, Any]
    ) -> None:
        """Open the record in `directory` for these stations; `step` > 0 continues at that step.

        Raises:
            OSError: if the disk refuses.
        """
        directory = directory.resolve()
        if directory not in _open:
            run_id = self._continued(directory, step) or uuid.uuid4().hex
            begun = {"begun_at_step": step} if step else {}
            _open[directory] = _Shared(RunRecord(directory, run_id, {**metadata, **begun}), run_id)
        self._shared = shared = _open[directory]
        shared.users += 1
        self.run_id, self.directory = shared.run_id, directory
        for station in stations:
            try:
                if station.behind:
                    shared.record.truncate_after(step - 1, station.instrument.name)
                self._open_part(station, shared.record)
            except Exception as error:  # what an instrument says of itself may be wrong
                station.stop_recording(error)

    @staticmethod
    def _open_part(station: Station, record: RunRecord) -> None:
        one = station.instrument
        station.record = record.instrument(
            one.name,
            one.quantities(),
            source=f"{type(one).__module__}:{type(one).__qualname__}",
            settings={**one.settings(), "max_overhead": station.budget.max_overhead},
        )

    def keep_probe(self, station: Station) -> None:
        """Store the probe of a station beside its numbers."""
        if station.probe_file is not None and station.probe is not None:
            try:
                station.probe.save(station.probe_file)
            except Exception as error:  # also a probe of things that no .npz can hold
                warn(f"the probe of {station.instrument.name!r} is not stored: {error}")

    def close(self, stations: Iterable[Station]) -> None:
        """Close the record when its last observer does."""
        for station in stations:
            station.record = None
        if self._shared is not None and self.directory is not None:
            self._shared.users -= 1
            if self._shared.users == 0:
                self._shared.record.close()
                _open.pop(self.directory, None)
            self._shared = None

    def _continued(self, directory: Path, step: int) -> str | None:
        """Make `directory` hold what is continued, up to `step`; its run id, or None for a new run."""
        here = _run_id(directory)
        if step == 0 or self.run_id is None:
            if here is not None:
                _set_aside(directory)
            return None
        if here != self.run_id:
            if here is not None:
                _set_aside(directory)
            if self.directory is None or _run_id(self.directory) != self.run_id:
                warn(
                    f"the record to continue is not in {self.directory} any more: a new one begins at {step}"
                )
                return None
            _copy_whole(self.directory, directory)
        RunRecord(directory, self.run_id).truncate_after(step)
        return self.run_id

    def state_dict(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "directory": None if self.directory is None else str(self.directory)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.run_id = state["run_id"]
        self.directory = None if state["directory"] is None else Path(state["directory"])


def _run_id(directory: Path) -> str | None:
    try:
        return str(open_run(directory).metadata.get("id"))
    except (FileNotFoundError, ValueError):
        return None


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a record; a process killed meanwhile leaves none, and not a part that looks like one."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    if target.exists():  # holds no record, or it would have been set aside
        shutil.copytree(target, partial, dirs_exist_ok=True)
        shutil.rmtree(target)
    partial.rename(target)


def _set_aside(directory: Path) -> None:
    """Rename the record of another run, so that the folder is free and nothing is lost."""
    k = 1
    while (aside := directory.with_name(f"{directory.name}.before_{k}")).exists():
        k += 1
    directory.rename(aside)
    if rank() == 0:
        warn(f"{directory} held the record of another run, which is now in {aside}")

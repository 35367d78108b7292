"""Looking at a run that is over: the same instruments over its saved checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from observatory.looking.ranks import warn
from observatory.looking.twin import copy_with, unwrapped
from observatory.observing.dashboard import Dashboard
from observatory.observing.instrument import Instrument
from observatory.observing.observer import Observer
from observatory.observing.schedule import Schedule
from observatory.observing.source import ProbeSource
from observatory.observing.watching import Examples, source_of
from observatory.records import Run, open_run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_STEP = re.compile(r"(?:step|iter|iteration)[-_=]?(\d+)", re.IGNORECASE)
_COMPILED = "_orig_mod."  # what `torch.compile(module)` puts into the names of its parameters


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights (or weights in memory) and when in the run they were saved."""

    source: Path | Mapping[str, Any]
    step: int
    epoch: int

    def content(self) -> Mapping[str, Any]:
        return load_checkpoint(self.source) if isinstance(self.source, Path) else self.source


def replay(
    model: nn.Module,
    checkpoints: Sequence[str | Path | Mapping[str, Any]],
    *,
    instruments: Sequence[Instrument],
    probe: Examples | ProbeSource | None = None,
    out: str | Path = "runs/replay",
    steps: Sequence[int] | None = None,
    prefix: str | None = None,
    log: Callable[[dict[str, float], int], None] | None = None,
    writer: SummaryWriter | None = None,
    strict: bool = False,
) -> Run:
    """Let instruments look at every one of a series of saved checkpoints, into an ordinary record.

    A file that cannot be read (half written, say) is left out with a warning. Of several checkpoints of one
    step the first counts.

    Args:
        model: a module of the architecture that was saved; it is copied, not changed.
        checkpoints: files of a `state_dict`, or of Lightning, or mappings in memory. They are loaded with
            `weights_only=True`: nothing in them is executed.
        instruments: what looks.
        probe: the examples to look at, or what to draw them from (see `watch`).
        out: folder of the run; the record goes to `<out>/observatory`.
        steps: optimizer updates that each checkpoint has seen. Default: what Lightning saved, else the number
            behind "step" or "iter" in the file's name; if one has neither, positions in the series.
        prefix: of the model's parameters in the checkpoint, such as "net."; default: the only one that fits.
        log, writer: as for `watch`.
        strict: let failures raise instead of warning once.

    Returns:
        The record.

    Raises:
        ValueError: if no checkpoint can be read, one does not fit the model, or `steps` does not match them.
    """
    series = _series(checkpoints, steps, strict=strict)
    seen = copy_with(unwrapped(model), {})
    schedule = Schedule(every_n_steps=1)
    observer = Observer(instruments, schedule=schedule, max_overhead=None, strict=strict)
    source = probe if isinstance(probe, ProbeSource) else source_of(probe)
    dashboards = [Dashboard(log, writer)] if log is not None or writer is not None else []
    directory = Path(out) / "observatory"
    metadata = {"module": type(seen).__name__, "replayed": [_name(one) for one in series]}
    try:
        for one in series:
            _load(seen, one, prefix)
            if one is series[0]:
                observer.start(
                    seen, source, step=one.step, epoch=one.epoch, total_steps=series[-1].step,
                    directory=directory, dashboards=dashboards, metadata=metadata,
                )  # fmt: skip
            observer.after_step(one.step, one.epoch)
        observer.finish(series[-1].step, series[-1].epoch)
    finally:
        observer.close()
    return open_run(directory)


def load_weights(model: nn.Module, path: Path, *, prefix: str | None = None) -> None:
    """Load the weights of a checkpoint into `model`, wherever the file keeps them.

    Args:
        model: of the architecture that was saved.
        path: a file of a `state_dict`, or of Lightning; nothing in it is executed.
        prefix: of the model's parameters in the checkpoint, such as "net."; default: the only one that fits.

    Raises:
        ValueError: if it cannot be read, or does not fit.
    """
    _load(model, Checkpoint(path, 0, 0), prefix)


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """A checkpoint, its tensors mapped from the file and on the CPU; nothing in it is executed.

    Raises:
        ValueError: if it is a folder, no checkpoint, or holds more than tensors and plain values.
        OSError: if it cannot be opened.
    """
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder of shards; make one file of it with "
            "`python -m lightning.pytorch.utilities.consolidate_checkpoint`"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_zipped(path))
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values, or is torn; allow a class that you trust with "
            f"torch.serialization.add_safe_globals: {str(error).splitlines()[0]}"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no checkpoint, or is torn: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a mapping of names to tensors")
    return content


def _zipped(path: Path) -> bool:
    """Whether it is of the format of PyTorch ≥ 1.6, which can be mapped."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _series(
    checkpoints: Sequence[str | Path | Mapping[str, Any]], steps: Sequence[int] | None, *, strict: bool
) -> list[Checkpoint]:
    """The readable ones in the order of their steps."""
    if steps is not None and len(steps) != len(checkpoints):
        raise ValueError(
            f"{len(steps)} steps are given for {len(checkpoints)} checkpoints; give one for each"
        )
    found: list[tuple[Path | Mapping[str, Any], int | None, int]] = []
    for k, given in enumerate(checkpoints):
        source = given if isinstance(given, Mapping) else Path(given)
        try:
            content = load_checkpoint(source) if isinstance(source, Path) else source
        except (OSError, ValueError) as error:
            if strict:
                raise
            warn(f"a checkpoint is left out: {error}")
            continue
        step = steps[k] if steps is not None else _step(content, source)
        epoch = content.get("epoch", 0)
        found.append((source, step, epoch if isinstance(epoch, int) else 0))
    if not found:
        raise ValueError(f"none of {len(checkpoints)} checkpoints can be read: there is nothing to look at")
    if any(step is None for _, step, _ in found):
        found = [(source, k, epoch) for k, (source, _, epoch) in enumerate(found)]
    series: dict[int, Checkpoint] = {}
    for source, step, epoch in found:
        assert step is not None  # since the line above
        series.setdefault(step, Checkpoint(source, step, epoch))
    return [series[step] for step in sorted(series)]


def _step(content: Mapping[str, Any], source: Path | Mapping[str, Any]) -> int | None:
    saved = content.get("global_step")
    if isinstance(saved, int):
        return saved
    numbers = _STEP.findall(source.stem) if isinstance(source, Path) else []
    return int(numbers[-1]) if numbers else None


def _load(model: nn.Module, checkpoint: Checkpoint, prefix: str | None) -> None:
    try:
        model.load_state_dict(_weights(checkpoint.content(), list(model.state_dict()), prefix))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{_name(checkpoint)} does not fit {type(model).__name__}: {error}") from error


def _weights(content: Mapping[str, Any], names: list[str], prefix: str | None) -> dict[str, Tensor]:
    """The tensors of `names` in a checkpoint, wherever and below whatever prefix it keeps them.

    Raises:
        ValueError: if there are none, or several.
    """
    wanted = {name.replace(_COMPILED, ""): name for name in names}
    places = {}
    for tensors in [content, *(part for part in content.values() if isinstance(part, Mapping))]:
        plain = {str(key).replace(_COMPILED, ""): value for key, value in tensors.items()}
        for place in _prefixes(plain, list(wanted)) if prefix is None else [prefix]:
            if all(place + name in plain for name in wanted):
                places[place] = {name: plain[place + short] for short, name in wanted.items()}
    if len(places) == 1 or "" in places:
        return places.get("") or next(iter(places.values()))
    if places:
        raise ValueError(f"it fits below the prefixes {', '.join(map(repr, places))}; choose with prefix=")
    below = "" if prefix is None else f" below the prefix {prefix!r}"
    raise ValueError(f"it does not hold all of {', '.join(names[:4])}, ... ({len(names)} tensors){below}")


def _prefixes(tensors: Mapping[str, Any], names: list[str]) -> list[str]:
    """What stands before the first of `names`, wherever it occurs."""
    last = names[0] if names else ""
    return [key[: -len(last)] if last else "" for key in tensors if f".{key}".endswith(f".{last}")]


def _name(checkpoint: Checkpoint) -> str:
    return checkpoint.source.name if isinstance(checkpoint.source, Path) else f"step {checkpoint.step}"

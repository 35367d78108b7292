"""Where probes come from: the data loaders of a run, or the batches that pass by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.data import IterableDataset

from observatory.looking.probe import Probe, Split, draw_probe, split_batch
from observatory.looking.ranks import broadcast_object, rank
from observatory.observing.instrument import Instrument


class ProbeSource:
    """Finds the probe that an instrument asks for.

    Args:
        loaders: returns the loader of a split, or None where there is none; not called before it is needed.
        given: the examples for every instrument that has not been given its own.
    """

    def __init__(self, loaders: Callable[[Split], Any], given: Probe | None = None) -> None:
        self._loaders = loaders
        self._given = given
        self._passed: list[Any] = []  # batches of a stream, kept until there are enough examples
        self._found: dict[Any, Probe] = {}  # equal requests share one probe

    def find(
        self,
        instrument: Instrument,
        device: torch.device,
        dtype: torch.dtype | None,
        *,
        kept: Path | None = None,
    ) -> Probe | None:
        """The probe on `device` in `dtype`; None if it must be made of batches that have not passed by yet.

        Every rank must call it: all see rank 0's examples.

        Args:
            instrument: what asks for it.
            device, dtype: of the model.
            kept: file of the probe in the record of a resumed run, whose stream has other examples by now.

        Raises:
            ValueError: if there is no loader for the split asked for, or its data set is empty.
        """
        request = instrument.probe
        if not isinstance(request, Probe) and self._given is not None:
            request = self._given
        if isinstance(request, Probe):
            return request.to(device, dtype)
        key = (request, instrument.inputs, instrument.targets)
        if key not in self._found:
            drawn = self._draw(instrument, kept) if rank() == 0 else None
            drawn = broadcast_object(None if drawn is None else drawn.to(torch.device("cpu")))
            if drawn is None:
                return None
            self._found[key] = drawn
        return self._found[key].to(device, dtype)

    def training(self) -> Any:
        """The loader of the training data, None where there is none."""
        return self._loaders("train")

    def offer(self, batch: Any) -> None:
        """A training batch passes by; rank 0 keeps it until the probes of streams are complete."""
        if rank() == 0:
            self._passed.append(tree_map(lambda x: x.detach().cpu() if isinstance(x, Tensor) else x, batch))

    def forget(self) -> None:
        """Nobody waits for batches any more."""
        self._passed.clear()

    def shortage(self, instrument: Instrument) -> str:
        """Why there is no probe at the end of a run."""
        request = instrument.probe
        assert not isinstance(request, Probe)
        return (
            f"it asks for {request.size} examples of the stream of {request.split} data, of which "
            f"{self._passed_by(instrument)} passed by; give probe= a smaller number, or examples"
        )

    def _passed_by(self, instrument: Instrument) -> int:
        return sum(
            len(split_batch(b, inputs=instrument.inputs, targets=instrument.targets)) for b in self._passed
        )

    def _draw(self, instrument: Instrument, kept: Path | None) -> Probe | None:
        request = instrument.probe
        assert not isinstance(request, Probe)  # `find` has returned those
        loader = self._loaders(request.split)
        if loader is None:
            raise ValueError(
                f"there is no {request.split} data loader to draw a probe from; give probe=Probe(x, y)"
            )
        dataset = getattr(loader, "dataset", None)  # Fabric's loaders are none of torch's
        if hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset):
            return draw_probe(loader, request, inputs=instrument.inputs, targets=instrument.targets)
        source = f"{request.split}: first batches of a stream"
        if (again := _kept(kept, source, request.size)) is not None:
            return again
        if self._passed_by(instrument) < request.size:
            return None
        parts = [split_batch(b, inputs=instrument.inputs, targets=instrument.targets) for b in self._passed]
        whole = Probe(_joined([p.inputs for p in parts]), _joined([p.targets for p in parts]))
        first = tree_map(
            lambda x: x[: request.size] if isinstance(x, Tensor) else x, (whole.inputs, whole.targets)
        )
        return replace(whole, inputs=first[0], targets=first[1], source=source)


def _kept(file: Path | None, source: str, size: int) -> Probe | None:
    """The probe of a stream that was looked at before this process began, if it is what is asked for now."""
    if file is None or not file.is_file():
        return None
    try:
        probe = Probe.load(file)
    except (OSError, ValueError):
        return None
    return probe if probe is not None and probe.source == source and len(probe) == size else None


def _joined(trees: list[Any]) -> Any:
    """Trees of equal structure, their tensors concatenated along the first axis."""
    flat = [tree_flatten(tree) for tree in trees]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    joined = [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    return tree_unflatten(joined, flat[0][1])

"""What the hidden layers of a network make of a set of inputs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from observatory.dimension.structure import KINDS, TRACED, Structure, hooked
from observatory.looking.model import ModelFunction
from observatory.looking.probe import rows

Activation = Literal["post", "pre"]
Pool = Literal["none", "mean"]
Place = tuple[str, str | int]  # "in" or "out" of a weight layer by number, or "at" another module by name
BATCH = 256  # examples that pass the network together
KEPT_BYTES = 2**28  # of representations that are held at a time; more layers than that take another pass


@dataclass(frozen=True)
class HiddenLayer:
    """A place in the network whose representation is looked at."""

    name: str
    number: int | None  # of the weight layer whose nodes these are, counted from 1; None for another module
    module: str = ""  # of another module: the name by which it is called


def hidden_layers(
    structure: Structure, function: ModelFunction, pattern: str | None = None
) -> list[HiddenLayer]:
    """The hidden weight layers, or those that a regular expression finds in their names, or other modules.

    Raises:
        ValueError: if there is none.
    """
    found = [HiddenLayer(structure.layers[k - 1].name, k) for k in structure.hidden]
    if pattern is not None:
        chosen = [layer for layer in found if re.search(pattern, layer.name)]
        names = [name for name, _ in function.twin.named_modules() if name and re.search(pattern, name)]
        found = chosen or [HiddenLayer(name, None, name) for name in names]
    if not found:
        known = ", ".join(layer.name for layer in structure.layers)
        raise ValueError(
            f"layers={pattern!r} finds no hidden layer; those with weights are {known}"
            if pattern is not None
            else f"the network has no hidden layer, only {known}"
        )
    return found


def representations(
    function: ModelFunction,
    inputs: Any,
    layers: Sequence[HiddenLayer],
    structure: Structure,
    *,
    activation: Activation = "post",
    pool: Pool = "none",
    max_features: int = 8192,
    kept_bytes: int = KEPT_BYTES,
) -> Iterator[tuple[HiddenLayer, Tensor]]:
    """Each layer with its samples × units, (N, D), in the dtype of the network.

    After the activation ("post") is what the next weight layer reads, before it ("pre") what the layer itself
    returns; of other modules it is always what they return. As many layers are held at a time as fit.

    Args:
        function: the network.
        inputs: N examples.
        layers: of `hidden_layers`.
        structure: of the network.
        activation: before or after the nonlinearity.
        pool: "mean" averages over positions, "none" takes each position of each channel as a unit.
        max_features: of more units, as many are drawn, always the same ones; not where channels are averaged.
        kept_bytes: of the representations that are held at a time, those of one layer at least.
    """
    waiting = [(_place(layer, structure, activation), layer) for layer in layers]
    recorder = _Recorder(pool, sys.maxsize if pool == "mean" else max_features)
    few = rows(inputs, 0, TRACED)
    trial = recorder.record(function, few, [place for place, _ in waiting])
    size = next(len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
    while waiting:
        held = [waiting[0][0]]
        weight = _bytes(trial[held[0]], size)
        for place, _ in waiting[1:]:
            weight += _bytes(trial[place], size)
            if weight > kept_bytes:
                break
            held.append(place)
        found = recorder.record(function, inputs, held)
        for place, layer in waiting[: len(held)]:
            h = found.pop(place)
            yield layer, _of_channels(h, structure, layer) if pool == "mean" else h
        waiting = waiting[len(held) :]


def _place(layer: HiddenLayer, structure: Structure, activation: Activation) -> Place:
    if layer.number is None:
        return "at", layer.module
    follower = structure.follower(layer.number)
    return ("in", follower) if activation == "post" and follower is not None else ("out", layer.number)


def _of_channels(h: Tensor, structure: Structure, layer: HiddenLayer) -> Tensor:
    """Means over the positions of a convolution whose maps were flattened before the next layer."""
    one = None if layer.number is None else structure.layers[layer.number - 1]
    if one is None or one.weight.ndim == 2 or h.shape[1] % one.nodes:
        return h
    return h.unflatten(1, (one.nodes, -1)).mean(-1)


def _bytes(trial: Tensor, size: int) -> int:
    return size * trial.shape[1] * trial.element_size()


class _Recorder:
    """Keeps what passes by at some places."""

    def __init__(self, pool: Pool, max_features: int) -> None:
        self.pool, self.max_features = pool, max_features
        self.found: dict[Place, list[Tensor]] = {}
        self.calls = 0
        self.called: set[str] = set()

    def record(self, function: ModelFunction, inputs: Any, places: Sequence[Place]) -> dict[Place, Tensor]:
        """Run the network on all inputs, a batch at a time."""
        self.found = {place: [] for place in places}
        size = next(len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
        with torch.no_grad(), hooked(function.twin, self.before, self.after):
            for start in range(0, size, BATCH):
                self.calls, self.called = 0, set()
                function(rows(inputs, start, start + BATCH))
        if lost := [place[1] for place, parts in self.found.items() if not parts]:
            raise ValueError(f"layer {lost[0]} is not called when the network runs on the probe")
        return {place: torch.cat(parts) for place, parts in self.found.items()}

    def before(self, name: str, module: nn.Module, read: Any) -> None:
        if isinstance(module, KINDS):
            self.calls += 1
            self._keep(("in", self.calls), read)

    def after(self, name: str, module: nn.Module, output: Any) -> None:
        if isinstance(module, KINDS):
            self._keep(("out", self.calls), output)
        if name not in self.called:
            self.called.add(name)
            self._keep(("at", name), output)

    def _keep(self, place: Place, tensor: Any) -> None:
        if place not in self.found:
            return
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{place[1]} returns {type(tensor).__name__}, not a tensor: name a module inside it"
            )
        if self.pool == "mean" and tensor.ndim > 2:
            tensor = tensor.flatten(2).mean(-1)
        flat = tensor.detach().flatten(1)
        if flat.shape[1] > self.max_features:
            flat = flat[:, _chosen(flat.shape[1], self.max_features).to(flat.device)]
        self.found[place].append(flat.clone())  # it may be overwritten


def _chosen(units: int, number: int) -> Tensor:
    return torch.randperm(units, generator=torch.Generator().manual_seed(0))[:number].sort().values

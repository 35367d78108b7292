"""What of a network's evaluation no chosen weight reaches, computed once for all points of weight space."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

LINEAR_IN_WEIGHTS = {functional.linear, functional.conv1d, functional.conv2d, functional.conv3d}
_REACHED = object()  # stands for the result of an operation that a chosen weight reaches


class AnotherCourse(RuntimeError):
    """The network called other operations than when its course was recorded."""


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A layer whose input no chosen weight reaches, and which is linear in its own chosen weights."""

    function: Callable[..., Tensor]
    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    options: tuple[Any, ...]
    named: Mapping[str, Any]
    output: Tensor  # at θ₀

    def of(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Its output with other weights."""
        return self.function(self.inputs, weight, bias, *self.options, **self.named)


@dataclass(frozen=True, eq=False)
class Course:
    """The operations of one evaluation at θ₀ in their order, and the results that can be taken over.

    Of results that only unreached operations use, the shape is kept and not the numbers.
    """

    functions: tuple[Callable[..., Any], ...]
    results: tuple[Any, ...]
    layers: Mapping[int, LinearLayer]  # by the number of the operation
    bytes: int  # of the numbers that are kept

    def result(self, number: int, function: Callable[..., Any]) -> Any:
        """The result of operation `number`, or `REACHED`.

        Raises:
            AnotherCourse: if the operation is another one.
        """
        if number >= len(self.functions) or self.functions[number] != function:
            raise AnotherCourse
        return self.results[number]


def record_course(evaluate: Callable[[], Any], chosen: Mapping[str, Tensor], others: Any) -> Course | None:
    """The course of an evaluation; None if it changes in place what it has used.

    Args:
        evaluate: uses the chosen weights.
        chosen: weights by name.
        others: all other tensors that it uses. What comes from elsewhere, from an operation that torch does
            not let us see for example, counts as reached.
    """
    recording = _Recording(chosen, others)
    with torch.no_grad(), recording:
        evaluate()
    return recording.course()


class OnCourse(TorchFunctionMode):
    """While active, operations that no chosen weight reaches return what they did when it was recorded.

    Args:
        course: None evaluates everything.
    """

    def __init__(self, course: Course | None) -> None:
        super().__init__()
        self.course = course
        self._number = -1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._number += 1
        if self.course is not None:
            result = self.course.result(self._number, func)
            if result is not _REACHED:
                return result
        return self.reached(func, args, kwargs or {})

    def reached(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Evaluate an operation that a chosen weight reaches."""
        return func(*args, **kwargs)

    @property
    def layer(self) -> tuple[int, LinearLayer] | None:
        """The present operation, if it is such a layer."""
        found = None if self.course is None else self.course.layers.get(self._number)
        return None if found is None else (self._number, found)


def weight_and_bias(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Of a call of one of `LINEAR_IN_WEIGHTS`."""
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    return weight, args[2] if len(args) > 2 else kwargs.get("bias")


@dataclass(eq=False)
class _Slot:
    """A tensor that an unreached operation returned: one for each object, since operations in place return
    it again.
    """

    tensor: weakref.ref[Tensor]
    standing_in: Tensor  # of the same shape, without storage
    kept: Tensor | None = None
    version: int = -1  # when a reached operation used it


class _Recording(TorchFunctionMode):
    """Only what reached operations take from unreached ones is held: the memory is that of one evaluation."""

    def __init__(self, chosen: Mapping[str, Tensor], others: Any) -> None:
        super().__init__()
        mine = {id(tensor) for tensor in chosen.values()}
        self._unreached = {id(leaf): weakref.ref(leaf) for leaf in _tensors(others) if id(leaf) not in mine}
        self._slots: dict[int, _Slot] = {}
        self._functions: list[Callable[..., Any]] = []
        self._results: list[Any] = []
        self._layers: dict[int, LinearLayer] = {}

    def _is_reached(self, leaf: Tensor) -> bool:
        found = self._unreached.get(id(leaf))
        return found is None or found() is not leaf

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        used = _tensors((args, kwargs))
        before = [_version(leaf) for leaf in used]
        reached = any(self._is_reached(leaf) for leaf in used)
        result = func(*args, **kwargs)
        if reached:
            self._keep(used, before)
            self._note_layer(func, args, kwargs, result)
            changed = [leaf for leaf, version in zip(used, before, strict=True) if _version(leaf) != version]
            for leaf in [*_tensors(result), *changed]:
                self._unreached.pop(id(leaf), None)
        else:
            self._unreached |= {id(leaf): weakref.ref(leaf) for leaf in _tensors(result)}
        self._functions.append(func)
        self._results.append(_REACHED if reached else tree_map(self._slot, result))
        return result

    def _slot(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        slot = self._slots.get(id(leaf))
        if slot is None or slot.tensor() is not leaf:
            slot = self._slots[id(leaf)] = _Slot(weakref.ref(leaf), leaf.new_empty(()).expand(leaf.shape))
        return slot

    def _keep(self, used: list[Tensor], versions: list[int]) -> None:
        for leaf, version in zip(used, versions, strict=True):
            slot = self._slots.get(id(leaf))
            if slot is not None and slot.tensor() is leaf and slot.kept is None:
                slot.kept, slot.version = leaf, version

    def _note_layer(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        if func not in LINEAR_IN_WEIGHTS or self._is_reached(args[0]):
            return
        weight, bias = weight_and_bias(args, kwargs)
        named = {key: value for key, value in kwargs.items() if key not in ("weight", "bias")}
        layer = LinearLayer(func, args[0], weight, bias, args[3:], named, result)
        self._layers[len(self._functions)] = layer

    def course(self) -> Course | None:
        """What was recorded."""
        slots = [leaf for result in self._results for leaf in tree_leaves(result) if isinstance(leaf, _Slot)]
        kept = {id(slot): slot.kept for slot in slots if slot.kept is not None}
        if any(slot.kept is not None and _version(slot.kept) != slot.version for slot in slots):
            return None

        def final(leaf: Any) -> Any:
            if not isinstance(leaf, _Slot):
                return leaf
            return leaf.standing_in if leaf.kept is None else leaf.kept

        held = [*kept.values(), *(layer.output for layer in self._layers.values())]
        return Course(
            tuple(self._functions),
            tuple(r if r is _REACHED else tree_map(final, r) for r in self._results),
            self._layers,
            sum(tensor.numel() * tensor.element_size() for tensor in held),
        )


def _version(tensor: Tensor) -> int:
    """How often it was changed in place."""
    return 0 if tensor.is_inference() else tensor._version


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]

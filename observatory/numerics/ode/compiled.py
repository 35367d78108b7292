"""Compiled code for functions of tensors that are called thousands of times with tensors of one layout."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

Flat = tuple[Tensor, ...]
Function = Callable[..., Flat]  # of tensors
BACKEND = "inductor"


class Compiled:
    """A function of tensors as compiled code, for any number of lanes in the first dimension."""

    def __init__(self, function: Function) -> None:
        options: dict[str, Any] = {"guard_filter_fn": _of_tensors}
        self._code = torch.compile(_of_its_own(function), fullgraph=True, backend=self._made, options=options)
        self.reached: tuple[Callable, tuple[Any, ...], Flat] | None = None

    def __call__(self, *tensors: Tensor) -> Flat:
        """Checks that the code was made for such tensors, and makes other code where it was not."""
        for tensor in tensors:  # at every call: code that was made for marked tensors does not serve others
            if tensor.ndim and len(tensor) > 1:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        results: Flat = self._code(*tensors)
        return results

    def _made(self, graph: Any, examples: Any) -> Callable:
        """A backend that notes which code a call comes to, with what, and what it returns."""
        from torch._inductor import config  # of no use before something is compiled

        cpu = all(tensor.device.type == "cpu" for tensor in examples if isinstance(tensor, Tensor))
        options = {
            "size_asserts": False,  # `Repeated` compares the layouts
            "cpp_wrapper": cpu,  # between its kernels, Python takes longer than they do
            "cpp.min_chunk_size": 4096,  # a second thread costs more than it saves on fewer cells than that
        }
        with config.patch(options):
            code = torch._dynamo.lookup_backend(BACKEND)(graph, examples)

        def noted(*arguments: Any) -> Flat:
            results: Flat = code(*arguments)
            self.reached = (code, arguments, results)
            return results

        return noted


class Repeated:
    """Calls compiled code past the checks of its arguments, which take longer than a step of a small system.

    For one loop, in which nothing needs a gradient: the first call is checked, and so is every one whose
    tensors have another layout than those of the last checked one. Not looked at again are tensors that were
    there the last time, and results of the last call that take the place they took before.
    """

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._layouts: list[tuple[Any, ...]] = []  # of the tensors of the checked call; empty: check the next
        self._code: Callable = compiled
        self._constants: Flat = ()  # sizes and tensors of the module's own, the same at every call
        self._arguments: list[int] = []  # of the code: which of the tensors and constants
        self._results: list[int] = []  # which of what the code returns
        self._expected: list[Tensor] = []  # of the layouts above
        self._returned: Flat = ()  # by the checked call, until it is known what becomes of it
        self._fed: list[tuple[int, int]] = []  # tensors that were results of the last call: which of which

    def __call__(self, *tensors: Tensor) -> Flat:
        if not self._layouts or any(map(_differs, tensors, self._expected, self._layouts)):
            return self._checked(tensors)
        if self._returned:
            place = {id(tensor): k for k, tensor in enumerate(self._returned)}
            self._fed = [(n, place[id(tensor)]) for n, tensor in enumerate(tensors) if id(tensor) in place]
            self._returned = ()
        given = tensors + self._constants
        found = self._code(*[given[k] for k in self._arguments])
        results = tuple([found[k] for k in self._results])
        for n, k in self._fed:
            self._expected[n] = results[k]
        return results

    def _checked(self, tensors: Flat) -> Flat:
        results = self._compiled(*tensors)
        assert self._compiled.reached is not None  # this call has come to some code
        self._code, arguments, found = self._compiled.reached
        self._compiled.reached = None  # or the tensors would live on
        place = {id(tensor): k for k, tensor in enumerate(tensors)}
        returned = {id(tensor): k for k, tensor in enumerate(found)}
        self._constants = tuple(a for a in arguments if id(a) not in place)
        more = iter(range(len(tensors), len(tensors) + len(self._constants)))
        self._arguments = [place[id(a)] if id(a) in place else next(more) for a in arguments]
        self._results = [returned.get(id(tensor), -1) for tensor in results]
        apart = len(place) == len(tensors) and -1 not in self._results  # no tensor twice, none handed through
        self._layouts = [(t.dtype, t.device, t.shape, t.stride()) for t in tensors] if apart else []
        self._expected, self._returned, self._fed = list(tensors), results, []
        return results


def _of_its_own(function: Function) -> Function:
    """The function with Python code of its own, which keeps what it was compiled to, up to a limit: functions
    that were made by the same lines share theirs, and the ninth would not be compiled."""
    assert isinstance(function, FunctionType)
    code = function.__code__.replace()
    return FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )


def _differs(tensor: Tensor, expected: Tensor, layout: tuple[Any, ...]) -> bool:
    if tensor is expected:
        return False
    dtype, device, shape, stride = layout
    return (
        tensor.dtype is not dtype
        or tensor.shape != shape
        or tensor.stride() != stride
        or tensor.device != device
    )


def _of_tensors(guards: Any) -> list[bool]:
    """The guards of the tensors that go in: those of the module's insides take a third of a step's time."""
    kinds = ("TENSOR_MATCH", "SHAPE_ENV", "DUPLICATE_INPUT")
    return [g.guard_type in kinds and "_called" not in g.name for g in guards]

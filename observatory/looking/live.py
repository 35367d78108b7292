"""A module in training, seen from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from observatory.looking.model import Forward, ModelFunction, Output
from observatory.looking.ranks import all_here, broadcast_tensor, world_size
from observatory.looking.twin import unwrapped, weightless_twin


class LiveModel:
    """Gives the function of a module as it is at this moment; the twin is built once and kept.

    Half-precision tensors are raised to float32. Shards are gathered, and buffers are those of rank 0 (after
    a step BatchNorm's differ between ranks, and a kernel whose rows are split over ranks would mix networks):
    with several processes every rank must call `function`.

    Args:
        module: the module in training, wrapped or compiled or neither.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = unwrapped(module)
        self._twin: nn.Module | None = None
        self._signature: tuple[tuple[str, torch.Size], ...] = ()
        self._parameters: list[tuple[str, nn.Parameter]] = []  # of the last full walk through the module
        self._kept: dict[tuple[Any, ...], tuple[list[int], ModelFunction]] = {}

    def prepare(self) -> None:
        """Build the twin now; it waits while the module has no parameters, or lazy ones."""
        if not self.ready:
            return
        signature = tuple((name, p.shape) for name, p in self.module.named_parameters())
        if signature and (self._twin is None or signature != self._signature):
            self._twin, self._signature = weightless_twin(self.module), signature

    def function(
        self, *, forward: Forward | None = None, output: Output | None = None, select: str | None = None
    ) -> ModelFunction:
        """The function of the module as it is now (see `ModelFunction.of` for the arguments).

        Raises:
            ValueError: if the module has no parameters, or none that is selected requires a gradient.
        """
        self.prepare()
        if self._twin is None:
            what = "has lazy parameters: run one batch through it" if not self.ready else "has no parameters"
            raise ValueError(f"{type(self.module).__name__} {what}; there is nothing to look at")
        all_here()
        self._parameters = list(self.module.named_parameters())
        self._owned = dict(self._parameters)
        function = ModelFunction.of(
            ModelFunction(
                twin=self._twin,
                parameters={name: _visible(p) for name, p in self._parameters},
                buffers={name: self._shared(b) for name, b in self.module.named_buffers()},
                selected=tuple(name for name, p in self._parameters if p.requires_grad),
                forward=forward,
                output=output,
            ),
            select=select if select is not None else ".",
        )
        self._keep((forward, output, select), function)
        return function

    def same_function(
        self, *, forward: Forward | None = None, output: Output | None = None, select: str | None = None
    ) -> ModelFunction:
        """The same, without a walk through the module where its tensors lie where they lay before.

        For what happens after every update: a few microseconds instead of hundreds. A parameter object that
        was exchanged for another is noticed by the next `function` only.
        """
        found, function = self._kept.get((forward, output, select), (None, None))
        if function is not None and found == self._unmoved():
            return function
        return self.function(forward=forward, output=output, select=select)

    def places(self, function: ModelFunction) -> list[tuple[Tensor, int]]:
        """The selected parameters, and where they lie; none if the function holds copies of them."""
        if not any(kept is function for _, kept in self._kept.values()):
            return []
        selected = set(function.selected)
        return [(p, p.data_ptr()) for name, p in self._parameters if name in selected]

    @property
    def ready(self) -> bool:
        """Whether every lazy parameter has its shape by now."""
        return not any(is_lazy(p) for p in self.module.parameters())

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU where there are none."""
        first = self._parameters[0][1] if self._parameters else next(self.module.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def _unmoved(self) -> list[int]:
        """Equal while nothing moves: places, inverted where frozen, since numbers compare fastest."""
        return [p.data_ptr() if p.requires_grad else ~p.data_ptr() for _, p in self._parameters]

    def _keep(self, key: tuple[Any, ...], function: ModelFunction) -> None:
        """Keep a function whose tensors are all references: copies would go stale."""
        seen = function.parameters.values()
        if world_size() == 1 and all(
            not isinstance(p, DTensor) and p.data_ptr() == v.data_ptr()
            for (_, p), v in zip(self._parameters, seen, strict=True)
        ):
            self._kept[key] = (self._unmoved(), function)
        else:
            self._kept.pop(key, None)

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the floating parameters as they are looked at; None if there are several."""
        seen = {torch.promote_types(p.dtype, torch.float32) for p in self.module.parameters()}
        return seen.pop() if len(seen) == 1 else None

    def gradients(self) -> Mapping[str, Tensor]:
        """References to `.grad` by parameter name, where there is one; of the last function's parameters.

        Shards are gathered when a gradient is read, which every rank then has to do.
        """
        return _Gradients(self._owned)

    def owned(self) -> Mapping[str, nn.Parameter]:
        """The parameter objects of the last function by name, to be found in an optimizer."""
        return self._owned

    @staticmethod
    def _shared(buffer: Tensor) -> Tensor:
        visible = _visible(buffer)
        return broadcast_tensor(visible) if world_size() > 1 else visible


class _Gradients(Mapping[str, Tensor]):
    """Found when they are read: after every step there are a few microseconds, not one for each parameter."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters

    def __getitem__(self, name: str) -> Tensor:
        gradient = self._parameters[name].grad
        if gradient is None:
            raise KeyError(name)
        if isinstance(gradient, DTensor):
            return gradient.full_tensor().detach()
        return gradient

    def __iter__(self) -> Iterator[str]:
        return (name for name, parameter in self._parameters.items() if parameter.grad is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _visible(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor

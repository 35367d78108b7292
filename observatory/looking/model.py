"""The model as a function of its parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from observatory.looking.freed_memory import keep_freed_memory
from observatory.looking.twin import copy_with, unwrapped, weightless_twin

Forward = Callable[[nn.Module, Any], Any]
Output = Callable[[Any], Tensor]


class _Called(nn.Module):
    """Runs a user's `forward(module, inputs)` inside `functional_call`."""

    def __init__(self, module: nn.Module, forward: Forward | None) -> None:
        super().__init__()
        self.module = module
        self.how = forward

    def forward(self, inputs: Any) -> Any:
        return self.module(inputs) if self.how is None else self.how(self.module, inputs)


@dataclass(frozen=True, eq=False)
class ModelFunction:
    """A module as a function f(inputs; θ) of live tensors that are only referred to, never changed.

    Calling it evaluates the weightless twin, in evaluation mode, eagerly, with gradients enabled.
    """

    twin: nn.Module  # the module's code, storage on the meta device
    parameters: dict[str, Tensor]  # detached references, in the order of `named_parameters()`
    buffers: dict[str, Tensor]  # detached references; every call works on copies
    selected: tuple[str, ...]  # names of the parameters to differentiate with respect to
    forward: Forward | None = None  # forward(module, inputs) -> output; default: module(inputs)
    output: Output | None = None  # output(whatever the model returns) -> tensor (N, ..., C)
    _called: nn.Module = field(init=False, repr=False)
    _recurrent: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_recurrent", any(isinstance(m, nn.RNNBase) for m in self.twin.modules()))
        object.__setattr__(self, "_called", _Called(self.twin, self.forward).eval())

    @classmethod
    def of(
        cls,
        model: nn.Module | ModelFunction,
        *,
        forward: Forward | None = None,
        output: Output | None = None,
        select: str | Callable[[str], bool] | None = None,
    ) -> ModelFunction:
        """The function of a module (or of a function, with some of its choices replaced).

        Args:
            model: a module; its tensors are referred to, its mode and gradients stay as they are.
            forward: how the model is called, `forward(module, inputs)`; default `module(inputs)`.
            output: what of its return value is the output, a tensor of shape (N, ..., C).
            select: which trainable parameters to differentiate with respect to: a regular expression
                searched in the name, or a predicate of the name. Default: all that require a gradient.

        Raises:
            ValueError: if no trainable parameter is selected.
            TypeError: if `model` is neither a module nor a `ModelFunction`.
        """
        if isinstance(model, ModelFunction):
            if forward is None and output is None and select is None:
                return model
            chosen = model if select is None else replace(model, selected=_select(model.selected, select))
            return replace(chosen, forward=forward or model.forward, output=output or model.output)
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
        module = unwrapped(model)
        trainable = [name for name, p in module.named_parameters() if p.requires_grad]
        function = cls(
            twin=weightless_twin(module),
            parameters={name: p.detach() for name, p in module.named_parameters()},
            buffers={name: b.detach() for name, b in module.named_buffers()},
            selected=_select(trainable, select),
            forward=forward,
            output=output,
        )
        if function.device.type == "cpu":
            keep_freed_memory()
        return function

    def module(self) -> nn.Module:
        """An ordinary module of the same tensors, in evaluation mode; its buffers are copies.

        For code that wants a module and changes nothing about its parameters, which need no gradients here.
        """
        memo: dict[int, Any] = {}
        for name, ghost in self.twin.named_parameters():
            memo[id(ghost)] = nn.Parameter(self.parameters[name], requires_grad=False)
        for name, buffer in self.twin.named_buffers():
            memo[id(buffer)] = self.buffers[name].clone()
        return copy_with(self.twin, memo).eval()

    @property
    def theta(self) -> dict[str, Tensor]:
        """The selected parameters by name."""
        return {name: self.parameters[name] for name in self.selected}

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def __call__(self, inputs: Any, theta: Mapping[str, Tensor] | None = None) -> Tensor:
        """The output tensor (N, ..., C) for `inputs`, with `theta` in place of the live parameters.

        Raises:
            TypeError: if the model cannot be called with the inputs alone and no `forward=` says how, or if
                it returns no tensor and no `output=` says which part of it is meant.
        """
        tensors = self.parameters | dict(theta or {}) | {name: b.clone() for name, b in self.buffers.items()}
        try:
            with self._differentiable():
                returned = torch.func.functional_call(
                    self._called, {f"module.{name}": tensor for name, tensor in tensors.items()}, (inputs,)
                )
        except (TypeError, NotImplementedError, AttributeError, KeyError) as error:
            if self.forward is not None:
                raise
            raise TypeError(
                f"{type(self.twin).__name__} cannot be called with {_words(inputs)} ({error}); say how with "
                "forward=, for example forward=lambda module, x: module.net(*x), and what of a batch x is "
                "with inputs="
            ) from error
        if self.output is not None:
            returned = self.output(returned)
        if not isinstance(returned, Tensor):
            raise TypeError(
                f"{type(self.twin).__name__} returned {type(returned).__name__}, not a tensor; "
                "name the part that is meant with output=, for example output=lambda out: out[0]"
            )
        return returned

    def _differentiable(self) -> AbstractContextManager[None]:
        """The recurrent layers of cuDNN have derivatives in training mode only; those of PyTorch always."""
        return torch.backends.cudnn.flags(enabled=False) if self._recurrent else nullcontext()


def _words(inputs: Any) -> str:
    kind = type(inputs).__name__
    return f"a {kind} of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else f"a {kind}"


def _select(
    names: list[str] | tuple[str, ...], select: str | Callable[[str], bool] | None
) -> tuple[str, ...]:
    if isinstance(select, str):
        pattern = re.compile(select)
        chosen = tuple(name for name in names if pattern.search(name))
    else:
        chosen = tuple(name for name in names if select is None or select(name))
    if not chosen:
        raise ValueError(
            "no trainable parameter is selected"
            + (f" by {select!r} out of {len(names)}: {', '.join(names[:8])}" if names else ": all are frozen")
        )
    return chosen

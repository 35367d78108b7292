"""The weightless twin: a module's code without its storage, so that looking at it cannot touch it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin


def weightless_twin(module: nn.Module) -> nn.Module:
    """An eager, evaluation-mode copy of `module` whose parameters and buffers live on the meta device.

    The twin shares nothing with the module: mode flags, gradients, buffers, compiled code and random streams of the
    original stay as they are whatever is done with the twin. It is evaluated with somebody else's tensors through
    `torch.func.functional_call`. Tied parameters stay tied. Hooks that the user put on the module are copied with it and
    run in the twin. State kept in plain attributes (a Python counter, an unregistered tensor) is a copy from the time of
    building. A LightningModule's reference to its Trainer is left out.

    Args:
        module: any module, also one wrapped by `torch.compile` or compiled in place.

    Raises:
        ValueError: if a parameter is lazy and not yet initialised.
    """
    module = unwrapped(module)
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    lazy = [name for name, tensor in tensors if isinstance(tensor, UninitializedTensorMixin)]
    if lazy:
        raise ValueError(
            f"parameter {lazy[0]!r} of {type(module).__name__} is not initialised yet; "
            "run one batch through the lazy module before looking at it"
        )
    memo: dict[int, Any] = {}
    for _, tensor in tensors:
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(_on_meta(tensor), requires_grad=tensor.requires_grad)
        else:
            memo[id(tensor)] = _on_meta(tensor)
    for submodule in module.modules():
        for left_behind in (
            submodule.__dict__.get("_trainer"),
            submodule.__dict__.get("_fabric"),
            submodule._compiled_call_impl,
        ):
            if left_behind is not None:
                memo[id(left_behind)] = (
                    None  # neither the training loop nor its compiled code belongs to the twin
                )
        for parameter in submodule._parameters.values():
            if parameter is not None and parameter.grad is not None:
                memo[id(parameter.grad)] = None
    return copy.deepcopy(module, memo).eval().requires_grad_(True)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile(module)`; any other module is returned as it is."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

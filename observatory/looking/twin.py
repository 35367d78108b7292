"""The weightless twin: a module's code without its storage, so that looking at it cannot touch it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy


def weightless_twin(module: nn.Module) -> nn.Module:
    """An eager, evaluation-mode copy of `module` whose parameters and buffers live on the meta device.

    The twin shares nothing with the module: mode flags, gradients, buffers, compiled code and random streams
    of the original stay as they are whatever is done with the twin. It is evaluated with somebody else's
    tensors through `torch.func.functional_call`. Tied parameters stay tied. Hooks that the user put on the
    module are copied with it and run in the twin. State kept in plain attributes (a Python counter, an
    unregistered tensor) is a copy from the time of building; attributes that cannot be copied (a lock, a
    generator) are shared. A LightningModule's reference to its Trainer is left out, and so are the hooks with
    which PyTorch moves shards about: the twin of a sharded module is that of the module before.

    Args:
        module: any module, also one wrapped (see `unwrapped`), compiled in place, or sharded by
            `fully_shard` or `parallelize_module`.

    Raises:
        ValueError: if a parameter is lazy and not yet initialised.
    """
    module = unwrapped(module)
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise ValueError(
            f"parameter {lazy[0]!r} of {type(module).__name__} is not initialised yet; "
            "run one batch through the lazy module before looking at it"
        )
    memo: dict[int, Any] = {}
    for _, tensor in tensors:
        ghost = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(ghost, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else ghost
        )
    for submodule in module.modules():
        _leave_behind(submodule, memo)
    return copy_with(module, memo).eval()


def copy_with(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy with other objects in the places of those in `memo`; shares what cannot be copied.

    It is eager, and its functions in attributes are its own.
    """
    try:
        made = _copied(module, dict(memo))
    except Exception:  # some plain attribute: which one is only known by trying each
        for submodule in module.modules():
            _share_uncopyable(submodule, memo)
        made = _copied(module, memo)
    parts = dict(made.named_modules())
    own = {id(part): parts[name] for name, part in module.named_modules() if name in parts}
    for part in made.modules():
        if isinstance(part, OptimizedModule):  # wrapped by torch.compile, and again by every deep copy
            part.__dict__["forward"] = part._orig_mod.__call__
        else:
            part.__dict__.update(_own_functions(part, own))
    return made


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy`; `fully_shard` forbids it by giving a module another class, which the copy has not."""
    sharded = [submodule for submodule in module.modules() if isinstance(submodule, FSDPModule)]
    for submodule in sharded:
        _, _, original = type(submodule).__mro__[:3]  # FSDPLinear, FSDPModule, Linear
        memo[id(submodule)] = object.__new__(original)
    for submodule in sharded:
        memo[id(submodule)].__dict__.update(copy.deepcopy(submodule.__dict__, memo))
    twin: nn.Module = copy.deepcopy(module, memo)
    return twin


def _own_functions(part: nn.Module, twins: Mapping[int, nn.Module]) -> dict[str, Any]:
    """Functions kept in attributes, eager and bound to the copy: `deepcopy` copies no function.

    `self.encode = torch.compile(self.encode)` and `self.act = lambda x: self.net(x)` refer to the module in
    training, in whose mode and with whose weights they would run.
    """
    own: dict[str, Any] = {}
    for name, value in part.__dict__.items():
        eager = getattr(value, "_torchdynamo_orig_callable", value)
        if isinstance(eager, MethodType) and id(eager.__self__) in twins:
            own[name] = MethodType(eager.__func__, twins[id(eager.__self__)])
        elif isinstance(eager, FunctionType):
            own[name] = _rebound(eager, twins)
        elif eager is not value:
            own[name] = eager
    return own


def _rebound(function: FunctionType, twins: Mapping[int, nn.Module]) -> FunctionType:
    """`function`, with the twin in place of every module that it closes over."""
    cells = function.__closure__ or ()
    contents = [_content(cell, twins) for cell in cells]
    closure = tuple(
        cell if twin is None else CellType(twin) for cell, twin in zip(cells, contents, strict=True)
    )
    rebound = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    return rebound


def _content(cell: CellType, twins: Mapping[int, nn.Module]) -> nn.Module | None:
    try:
        return twins.get(id(cell.cell_contents))
    except ValueError:  # not assigned yet
        return None


def _leave_behind(module: nn.Module, memo: dict[int, Any]) -> None:
    """What belongs to the training loop, or to one forward pass, and not to the module's code."""
    for name, value in module.__dict__.items():
        if name in ("_trainer", "_fabric", "_compiled_call_impl") and value is not None:
            memo[id(value)] = None
        if name.endswith("_hooks") and isinstance(value, dict):
            memo |= {id(hook): _does_nothing for hook in value.values() if _moves_shards(hook)}
    for parameter in module._parameters.values():
        if parameter is not None and parameter.grad is not None:
            memo[id(parameter.grad)] = None
    for value in module.__dict__.values():
        if isinstance(value, Tensor) and value.grad_fn is not None:  # deepcopy takes leaves only
            memo[id(value)] = value.detach().clone()


def _moves_shards(hook: Any) -> bool:
    function = hook.func if isinstance(hook, functools.partial) else hook
    return str(getattr(function, "__module__", "")).startswith("torch.distributed")


def _does_nothing(*_: Any, **__: Any) -> None:
    """In place of a hook that belongs to the strategy."""


def _share_uncopyable(module: nn.Module, memo: dict[int, Any]) -> None:
    """Locks, generators, open files: the twin refers to the module's own."""
    for name, value in module.__dict__.items():
        if name in ("_parameters", "_buffers", "_modules"):
            continue
        try:
            copy.deepcopy(value, dict(memo))
        except Exception:
            memo[id(value)] = value


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile(module)`, `DistributedDataParallel`, or Fabric's wrapper.

    Any other module is returned as it is.

    Raises:
        ValueError: if a parameter is flattened by `FullyShardedDataParallel`, the older way to shard.
    """
    if any(isinstance(part, FullyShardedDataParallel) for part in module.modules()):
        raise ValueError(
            "FullyShardedDataParallel (FSDP1) keeps no parameter in its own shape; "
            "shard with torch.distributed.fsdp.fully_shard (Lightning: ModelParallelStrategy) instead"
        )
    inner: Any = getattr(module, "_orig_mod", None)  # torch.compile
    if inner is None:
        inner = module.__dict__.get("_modules", {}).get("_original_module")  # Fabric
    if inner is None and isinstance(module, DistributedDataParallel | DataParallel):
        inner = module.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else module

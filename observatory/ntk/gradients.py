"""Per-example gradients in given output directions: the exact definition, in chunks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from observatory.looking.model import ModelFunction
from observatory.looking.probe import rows

_log = logging.getLogger("observatory.ntk")
_ALONE = "_observatory_alone"  # attribute of the twin: its examples cannot be batched


def example_gradients(
    function: ModelFunction, x: Any, directions: Tensor, names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """∂(v_id · f(x_i))/∂θ for every example i and direction d.

    By `torch.func`; one example after the other where the model does what has no batching rule, such as the
    fused recurrent layers or a decision that depends on the inputs.

    Args:
        function: the model.
        x: N examples.
        directions: (D, N, *output), one output direction per example and d.
        names: of the parameters; default all selected.

    Returns:
        Parameter name to (N, D, *parameter): N·D·P numbers, so give few examples at a time.
    """
    names = list(function.selected if names is None else names)
    theta = {name: function.theta[name] for name in names}
    with batchable():
        if not function.twin.__dict__.get(_ALONE, False):
            try:
                return _together(function, x, directions, theta)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                found = _alone(function, x, directions, theta)  # fails too if it is the model that is wrong
                _log.info("examples are looked at one by one, since they cannot be batched: %s", error)
                function.twin.__dict__[_ALONE] = True
                return found
        return _alone(function, x, directions, theta)


def _together(
    function: ModelFunction, x: Any, directions: Tensor, theta: dict[str, Tensor]
) -> dict[str, Tensor]:
    def one(example: Any, vectors: Tensor) -> dict[str, Tensor]:
        single = tree_map(lambda leaf: leaf[None] if isinstance(leaf, Tensor) else leaf, example)
        pull_back = torch.func.vjp(lambda t: function(single, t)[0], theta)[1]
        gradients: dict[str, Tensor] = torch.func.vmap(pull_back)(vectors)[0]
        return gradients

    axes = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, x)
    return dict(torch.func.vmap(one, in_dims=(axes, 1))(x, directions))


def _alone(
    function: ModelFunction, x: Any, directions: Tensor, theta: dict[str, Tensor]
) -> dict[str, Tensor]:
    free = {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}
    found: dict[str, list[Tensor]] = {name: [] for name in theta}
    for i in range(directions.shape[1]):
        with torch.enable_grad():
            output = function(rows(x, i, i + 1), free)
        gradients: Sequence[Tensor | None] = [None] * len(free)  # where inputs decide what is used
        if output.requires_grad:
            gradients = torch.autograd.grad(
                output, list(free.values()), directions[:, i : i + 1],
                is_grads_batched=True, allow_unused=True,
            )  # fmt: skip
        for (name, parts), gradient in zip(found.items(), gradients, strict=True):
            empty = theta[name].new_zeros(len(directions), *theta[name].shape)
            parts.append(empty if gradient is None else gradient)
    return {name: torch.stack(parts) for name, parts in found.items()}


@contextmanager
def batchable() -> Iterator[None]:
    """Within, attention is made of operations that have batching rules and forward-mode derivatives."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a whole transformer layer in one call
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():  # the fused attentions have neither
            warnings.filterwarnings("ignore", message="There is a performance drop")  # nor have some others
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)

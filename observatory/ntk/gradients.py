"""Per-example gradients in given output directions: the exact definition, in chunks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from observatory.looking.model import ModelFunction


def example_gradients(
    function: ModelFunction, x: Any, directions: Tensor, names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """∂(v_id · f(x_i))/∂θ for every example i and direction d, by `torch.func`.

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

    def one(example: Any, vectors: Tensor) -> dict[str, Tensor]:
        single = tree_map(lambda leaf: leaf[None] if isinstance(leaf, Tensor) else leaf, example)
        pull_back = torch.func.vjp(lambda t: function(single, t)[0], theta)[1]
        gradients: dict[str, Tensor] = torch.func.vmap(pull_back)(vectors)[0]
        return gradients

    axes = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, x)
    with batchable():
        return dict(torch.func.vmap(one, in_dims=(axes, 1))(x, directions))


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


def rows(x: Any, start: int, stop: int) -> Any:
    """Examples `start` to `stop` of nested inputs."""
    return tree_map(lambda leaf: leaf[start:stop] if isinstance(leaf, Tensor) else leaf, x)

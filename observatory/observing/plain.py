"""The state of somebody's instrument on its way into a checkpoint that must be loadable again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_PLAIN = (str, int, float, bool, type(None))
_MANY = (list, tuple)


def plain_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `state`, its tensors referred to.

    Checkpoints are loaded with `weights_only=True`. An array of NumPy, a path or a `deque` would be saved
    without complaint and then make the whole checkpoint impossible to load.

    Raises:
        TypeError: if it holds anything but tensors, str, int, float, bool, None, list, tuple and dict.
    """
    return {str(key): _plain(value, str(key)) for key, value in state.items()}


def _plain(value: Any, where: str) -> Any:
    kind = type(value)  # a subclass is pickled by its own name: numpy.float64 is one of float
    if kind in _PLAIN:
        return value
    if kind in (Tensor, nn.Parameter):
        return value.detach()
    if kind in _MANY:
        return kind(_plain(item, f"{where}[{k}]") for k, item in enumerate(value))
    if kind is dict and all(type(key) in _PLAIN for key in value):
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise TypeError(
        f"state_dict() holds a {kind.__module__}.{kind.__qualname__} at {where}, which no checkpoint can be "
        "loaded with; keep tensors, str, int, float, bool, None, list, tuple and dict only"
    )


def fresh_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that later changes of the instrument do not reach."""
    return copy.deepcopy(plain_state(state))

"""Losses in elementary operations, for transforms that torch's own kernels of them do not survive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def _huber(difference: Tensor, delta: float = 1.0) -> Tensor:
    size = difference.abs()
    return torch.where(size < delta, size.square() / 2, delta * (size - delta / 2))


def _smooth_l1(difference: Tensor, beta: float = 1.0) -> Tensor:
    return _huber(difference, beta) / beta if beta > 0 else difference.abs()


_OF_DIFFERENCES: dict[Any, Callable[..., Tensor]] = {
    functional.mse_loss: torch.square,
    functional.huber_loss: _huber,
    functional.smooth_l1_loss: _smooth_l1,
}
_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "none": lambda loss: loss,
}


class ElementaryLosses(TorchFunctionMode):
    """While active, losses of differences are evaluated by their definition, with equal values.

    torch (up to 2.13) raises for mse_loss in forward over reverse mode ("ZeroTensors are immutable"), and for
    mse_loss, huber_loss and smooth_l1_loss under two nested `vmap`s unless both arguments are batched.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _OF_DIFFERENCES and len(args) == 2 and self._known(kwargs):
            settings = {key: kwargs[key] for key in ("delta", "beta") if key in kwargs}
            output, target = args
            loss = _OF_DIFFERENCES[func](output - target, **settings)
            return _REDUCTIONS[kwargs.get("reduction", "mean")](loss)
        return func(*args, **kwargs)

    @staticmethod
    def _known(kwargs: dict[str, Any]) -> bool:
        """Whether only settings are given that the definitions above have."""
        return all(key in ("reduction", "delta", "beta") or value is None for key, value in kwargs.items())

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


def _cross_entropy(output: Tensor, target: Tensor, *, ignore_index: int, reduction: str) -> Tensor:
    """ln Σ exp f_c - f_y of classes (N, ...), f of shape (N, C, ...), with the largest f taken off first."""
    shifted = output - output.detach().amax(1, keepdim=True)
    counted = target != ignore_index
    own = shifted.gather(1, torch.where(counted, target, 0).unsqueeze(1)).squeeze(1)
    loss = torch.where(counted, shifted.exp().sum(1).log() - own, 0.0)
    return loss.sum() / counted.sum() if reduction == "mean" else _REDUCTIONS[reduction](loss)


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
    """While active, losses of differences and the cross-entropy of classes are evaluated by their definition,
    with equal values.

    torch's own log-softmax takes ten times longer for ten classes on a CPU, its derivatives more still.
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
        if func is functional.cross_entropy and len(args) == 2 and self._plain(*args, kwargs):
            choices = {"ignore_index": -100, "reduction": "mean"} | kwargs
            return _cross_entropy(*args, ignore_index=choices["ignore_index"], reduction=choices["reduction"])
        return func(*args, **kwargs)

    @staticmethod
    def _plain(output: Tensor, target: Tensor, kwargs: dict[str, Any]) -> bool:
        """Whether the targets are classes, neither weighted nor smoothed."""
        given = {key: value for key, value in kwargs.items() if value is not None}
        bare = not set(given) - {"ignore_index", "reduction", "label_smoothing"}
        whole = given.get("label_smoothing", 0.0) == 0.0 and not target.is_floating_point()
        return bare and whole and output.ndim == target.ndim + 1 >= 2

    @staticmethod
    def _known(kwargs: dict[str, Any]) -> bool:
        """Whether only settings are given that the definitions above have."""
        return all(key in ("reduction", "delta", "beta") or value is None for key, value in kwargs.items())

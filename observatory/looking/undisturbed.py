"""The surroundings of a look: whatever the training loop has switched on or off, a look sees the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from observatory.looking.probe import forked_streams


@contextmanager
def undisturbed(device: torch.device, *, streams: bool = True) -> Iterator[None]:
    """Gradients on, autocast and TF32 off, and afterwards every random stream and switch as it was before.

    Args:
        device: that of the model.
        streams: fork the random streams; False for what draws nothing and has to be done in microseconds.
    """
    cuda = device.type == "cuda"
    if not (cuda or streams or _switched(device)):  # after every step: nothing to switch, little to restore
        try:
            yield
        finally:
            torch.set_grad_enabled(True)
        return
    with (
        forked_streams([device.index or 0] if cuda else []) if streams else nullcontext(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False)
        if torch.is_autocast_enabled(device.type)
        else nullcontext(),
    ):
        if not cuda:
            yield
            return
        matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def _switched(device: torch.device) -> bool:
    """Whether something is on that a look must not see."""
    return (
        not torch.is_grad_enabled()
        or torch.is_inference_mode_enabled()
        or torch.is_autocast_enabled(device.type)
    )

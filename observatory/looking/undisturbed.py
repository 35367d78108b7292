"""The surroundings of a look: whatever the training loop has switched on or off, a look sees the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from observatory.looking.probe import forked_streams

CPU = torch.device("cpu")


@contextmanager
def undisturbed(device: torch.device, *, streams: bool = True) -> Iterator[None]:
    """Gradients on, autocast and TF32 off, and afterwards every random stream and switch as it was before.

    Args:
        device: that of the model.
        streams: fork the random streams; False for what draws nothing.
    """
    cuda = device.type == "cuda"
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


def undisturbed_already(device: torch.device) -> bool:
    """Whether there is nothing to switch for a look that draws nothing; asked of the CPU only."""
    return (
        device == CPU
        and torch.is_grad_enabled()
        and not torch.is_inference_mode_enabled()
        and not torch.is_autocast_enabled("cpu")
    )

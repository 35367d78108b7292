"""The surroundings of a look: whatever the training loop has switched on or off, a look sees the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from observatory.looking.probe import forked_streams


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Gradients on, autocast and TF32 off, and afterwards every random stream and switch as it was before."""
    cuda = device.type == "cuda"
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with (
        forked_streams([device.index or 0] if cuda else []),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        if not cuda:
            yield
            return
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution

"""The loss that is meant where nobody names one."""

from __future__ import annotations

import torch
from torch import Tensor


def likelihood_loss(output: Tensor, targets: Tensor) -> Tensor:
    """Mean over the examples of -ln p(targets | output), without constants.

    Integer targets: categorical, L = -(1/N) Σ ln softmax(f)_y. Others: Gaussian with σ² = 1,
    L = (1/2N) Σ ‖f - y‖². (`torch.nn.MSELoss` is 2/C times the latter.)

    Args:
        output: (N, ..., C) logits, or means.
        targets: (N, ...) integer classes, or values of the shape of `output`.
    """
    if not torch.is_floating_point(targets):
        return torch.nn.functional.cross_entropy(output.flatten(0, -2), targets.flatten().long())
    return (output - targets.reshape(output.shape)).square().sum() / (2 * output.shape[0])

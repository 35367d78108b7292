"""Learning rates that follow the kernel."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-8


def trace_controlled_learning_rate(kernel: Tensor, *, scale: float, mean: bool = True) -> Tensor:
    """η = κ/(Tr K + 10⁻⁸): the larger the response of the outputs to a step, the smaller the step.

    Args:
        kernel: trace-contracted empirical NTK, (..., n, n).
        scale: κ > 0.
        mean: Tr K/n instead of Tr K, which grows with the size of the probe.

    Returns:
        Shape (...).

    Raises:
        ValueError: if κ is not positive.
    """
    if scale <= 0:
        raise ValueError(f"a learning rate needs a positive scale, got {scale}")
    trace = kernel.diagonal(dim1=-2, dim2=-1).sum(-1)
    return scale / ((trace / kernel.shape[-1] if mean else trace) + EPSILON)

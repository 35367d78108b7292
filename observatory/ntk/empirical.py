"""The empirical neural tangent kernel Θ = J Jᵀ, J = ∂f/∂θ, of a model on a set of examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from observatory.looking.model import Forward, ModelFunction, Output
from observatory.looking.probe import Probe
from observatory.ntk.gradients import example_gradients, rows

Kind = Literal["full", "trace"]


def empirical_ntk(
    model: nn.Module | ModelFunction,
    x: Any,
    *,
    kind: Kind = "full",
    max_memory: int = 2**30,
    forward: Forward | None = None,
    output: Output | None = None,
    select: str | Callable[[str], bool] | None = None,
) -> Tensor:
    """Θ_(ic)(jd) = ∇f_c(x_i) · ∇f_d(x_j), gradients with respect to the trainable parameters as stored.

    Args:
        model: a module (its mode, gradients and buffers stay as they are), looked at in evaluation mode.
        x: N examples along the first axis of a tensor, or of the tensors in a nested structure.
        kind: "full" gives (N, C, N, C), where outputs with further axes are flattened to C; "trace" gives
            Σ_c Θ_(ic)(jc), (N, N): a sum over outputs, not a mean.
        max_memory: bytes that gradients may take at a time.
        forward, output, select: see `ModelFunction.of`.

    Returns:
        The kernel, in the dtype of the outputs (half precision is raised to float32), on their device.

    Raises:
        ValueError: if the first axis of the output is not N, or the kind is unknown.
    """
    function = ModelFunction.of(model, forward=forward, output=output, select=select)
    n = len(Probe(x))
    outputs = _checked_outputs(function, x, n)
    identity = torch.eye(outputs.numel() // n, dtype=outputs.dtype, device=outputs.device)
    directions = identity.reshape(-1, 1, *outputs.shape[1:]).expand(-1, n, *outputs.shape[1:])
    c = len(identity)
    parameters = sum(p.numel() for p in function.theta.values())
    size = max(1, min(n, max_memory // (3 * max(1, c * parameters * outputs.element_size()))))
    blocks = [(start, min(start + size, n)) for start in range(0, n, size)]
    kernel = outputs.new_empty((n, c, n, c) if kind == "full" else (n, n))

    def jacobian(block: tuple[int, int]) -> list[Tensor]:
        gradients = example_gradients(function, rows(x, *block), directions[:, block[0] : block[1]])
        return [g.flatten(2) for g in gradients.values()]  # (n, C, P of one parameter)

    for k, first in enumerate(blocks):
        left = jacobian(first)
        for second in blocks[k:]:
            right = left if second is first else jacobian(second)
            equation = "icp,jdp->icjd" if kind == "full" else "icp,jcp->ij"
            block = torch.stack([torch.einsum(equation, a, b) for a, b in zip(left, right, strict=True)]).sum(0)
            at, of = slice(*first), slice(*second)
            if kind == "full":
                kernel[at, :, of], kernel[of, :, at] = block, block.permute(2, 3, 0, 1)
            else:
                kernel[at, of], kernel[of, at] = block, block.T
    return kernel


def _checked_outputs(function: ModelFunction, x: Any, n: int) -> Tensor:
    with torch.no_grad():
        outputs = function(x)
    if outputs.ndim == 0 or outputs.shape[0] != n:
        raise ValueError(
            f"{n} examples gave an output of shape {tuple(outputs.shape)}, whose first axis is not the examples'; "
            "name the part that is meant with output=, or how the model is called with forward="
        )
    return outputs[:, None] if outputs.ndim == 1 else outputs

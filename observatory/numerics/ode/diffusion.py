"""Diffusion without a limit on the step: Crank-Nicolson in the modes of the grid."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def crank_nicolson(
    u: Tensor, number: Tensor, *, boundary: Literal["no-flux", "periodic"] = "no-flux", dims: int = 2
) -> Tensor:
    """(1 - n L/2)⁻¹ (1 + n L/2) u: one step of u' = D∇²u with n = D h/dx², second order and stable for any n.

    L is the three-point (one dimension) or five-point Laplacian of unit spacing, diagonal in plane waves or,
    without flux, in cosines; the latter are the plane waves of the field continued by its mirror image.

    Args:
        u: field, its last `dims` dimensions are space.
        number: n, shape () or that of the leading dimensions of u.
    """
    axes = tuple(range(-dims, 0))
    shape = u.shape[-dims:]
    if boundary == "no-flux":
        for axis in axes:
            u = torch.cat([u, u.flip(axis)], axis)
    z = number.reshape(number.shape + (1,) * (u.ndim - number.ndim)) * _eigenvalues(u, dims) / 2
    moved = torch.fft.ifftn(torch.fft.fftn(u, dim=axes) * (1 + z) / (1 - z), dim=axes).real
    return moved[(..., *(slice(n) for n in shape))]


def _eigenvalues(u: Tensor, dims: int) -> Tensor:
    """Σ over the dimensions of 2 cos(2πk/n) - 2, of the shape of these dimensions."""
    total = u.new_zeros(())
    for place, n in enumerate(u.shape[-dims:]):
        angle = 2 * torch.pi * torch.arange(n, dtype=u.dtype, device=u.device) / n
        total = total + (2 * torch.cos(angle) - 2).reshape((-1,) + (1,) * (dims - 1 - place))
    return total

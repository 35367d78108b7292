"""Diffusion on a grid: its operator, and a step without a limit on its size."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

Boundary = Literal["no-flux", "periodic"]


def laplacian(u: Tensor, *, boundary: Boundary = "no-flux", dims: int = 2) -> Tensor:
    """∇²u in units of the spacing: Σ over the dimensions of u₊ - 2u + u₋, the three- or five-point stencil.

    Without flux the neighbour of a cell at the border is that cell itself; eigenvectors are then the DCT-II
    modes of n cells, with eigenvalues 2 cos(πk/n) - 2 per dimension. Padded differences, once compiled, take
    longer: they ask for the place of every cell in its row, and their transpose is another expression.

    Args:
        u: field, its last `dims` dimensions are space.

    Raises:
        ValueError: if there is no such boundary, or u has fewer dimensions.
    """
    _check(u, boundary, dims)
    if torch.compiler.is_compiling():
        found: Tensor = _Laplacian.apply(u, boundary, dims)
        return found
    return _stencil(u, boundary, dims)


def _check(u: Tensor, boundary: Boundary, dims: int) -> None:
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary must be one of {', '.join(get_args(Boundary))}, got {boundary!r}")
    if not 1 <= dims <= u.ndim:
        raise ValueError(
            f"a field of shape {tuple(u.shape)} has no {dims} dimensions of space: give dims= the number of "
            "its last dimensions that are space"
        )


def _stencil(u: Tensor, boundary: Boundary, dims: int) -> Tensor:
    periodic = boundary == "periodic"
    first, last = u[..., :1], u[..., -1:]
    # along rows a bordered copy, as code that runs over whole vectors cannot ask where each cell is
    row = torch.cat([last, u, first] if periodic else [first, u, last], -1)
    total = torch.sub(row[..., 2:] + row[..., :-2], u, alpha=2)
    for axis in range(-dims, -1):
        if periodic:
            total = torch.sub(total + u.roll(1, axis) + u.roll(-1, axis), u, alpha=2)
        else:
            n, sides = u.shape[axis] - 1, (0, 0) * (-axis - 1)
            flux = u.narrow(axis, 1, n) - u.narrow(axis, 0, n)
            total = total + pad(flux, (*sides, 0, 1)) - pad(flux, (*sides, 1, 0))
    return total


@torch.compiler.allow_in_graph  # or what is traced is `forward`, transposed slice by slice
class _Laplacian(torch.autograd.Function):
    """Symmetric and linear: its own transpose and derivative. Uncompiled it costs more than it saves."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, boundary: Boundary, dims: int) -> Tensor:
        return _stencil(u, boundary, dims)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Boundary, int], output: Tensor) -> None:
        ctx.kind = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Laplacian.apply(gradient, *ctx.kind), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        moved: Tensor = _Laplacian.apply(tangent, *ctx.kind)
        return moved


def crank_nicolson(u: Tensor, number: Tensor, *, boundary: Boundary = "no-flux", dims: int = 2) -> Tensor:
    """(1 - n L/2)⁻¹ (1 + n L/2) u: one step of u' = D∇²u with n = D h/dx², second order and stable for any n.

    L is the three-point (one dimension) or five-point Laplacian of unit spacing, diagonal in plane waves or,
    without flux, in cosines; the latter are the plane waves of the field continued by its mirror image.

    Args:
        u: field, its last `dims` dimensions are space.
        number: n, shape () or that of the leading dimensions of u.

    Raises:
        ValueError: if there is no such boundary, or u has fewer dimensions.
    """
    _check(u, boundary, dims)
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

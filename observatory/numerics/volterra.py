"""Convolution equations on a regular grid: lower triangular Toeplitz systems and Volterra equations."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 512  # unknowns that are solved directly
BLOCK_MEMORY = 2**21  # numbers in the direct blocks of a batch

Rule = Literal["trapezoid", "rectangle", "midpoint"]
RULES = ("trapezoid", "rectangle", "midpoint")


def solve_toeplitz(column: Tensor, rhs: Tensor) -> Tensor:
    """x with Σ_{j≤i} c_{i-j} x_j = b_i: a lower triangular Toeplitz system by relaxed divide and conquer.

    Blocks are solved directly, by substitution; what a solved half contributes to the next half is one
    Fourier convolution, so that the substitution is never replaced by a power series of 1/c, which loses all
    digits on sampled correlation functions. O(n ln² n); backwards stable in practice. (Hairer, Lubich,
    Schlichte, SIAM J. Sci. Stat. Comput. 6, 532 (1985); van der Hoeven, J. Symb. Comput. 34, 479 (2002).)

    Args:
        column: c, (..., n), the first column.
        rhs: b, (..., n); leading dimensions broadcast.

    Returns:
        Shape (..., n), float64, twice differentiable in both.

    Raises:
        ValueError: if the lengths differ or a c_0 vanishes.
    """
    if column.shape[-1] != rhs.shape[-1] or rhs.shape[-1] == 0:
        raise ValueError(
            f"a column and a right-hand side of equal length are needed, got {tuple(column.shape)} and "
            f"{tuple(rhs.shape)}"
        )
    if bool((column[..., 0] == 0).any()):
        raise ValueError("the diagonal of the system vanishes: c_0 = 0")
    c, b = torch.broadcast_tensors(column.double(), rhs.double())
    solution: Tensor = _Solution.apply(c, b)
    return solution


def convolve(a: Tensor, b: Tensor) -> Tensor:
    """(a * b)_i = Σ_{j≤i} a_{i-j} b_j for i < n, both (..., n); float64, differentiable."""
    n = a.shape[-1]
    size = 2 ** math.ceil(math.log2(2 * n))
    product = torch.fft.rfft(a.double(), n=size) * torch.fft.rfft(b.double(), n=size)
    return torch.fft.irfft(product, n=size)[..., :n]


class _Solution(torch.autograd.Function):
    """dL/db = T⁻ᵀ dL/dx is the same system backwards in time, dL/dc_k = -Σ_i (dL/db)_i x_{i-k}."""

    @staticmethod
    def forward(ctx: Any, column: Tensor, rhs: Tensor) -> Tensor:
        x = _divide_and_conquer(column, rhs)
        ctx.save_for_backward(column, x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        column, x = ctx.saved_tensors
        to_rhs: Tensor = _Solution.apply(column, gradient.flip(-1)).flip(-1)
        to_column = -convolve(to_rhs.flip(-1), x).flip(-1)
        return to_column, to_rhs


def _divide_and_conquer(column: Tensor, rhs: Tensor) -> Tensor:
    n, batch = rhs.shape[-1], max(1, rhs.shape[:-1].numel())
    block = max(16, min(BLOCK, 2 ** int(math.log2(math.sqrt(BLOCK_MEMORY / batch)))))
    leaves = math.ceil(n / block)
    b = pad(rhs, (0, leaves * block - n)).clone()
    x = torch.zeros_like(b)
    direct = _toeplitz(pad(column, (0, max(0, block - n)))[..., :block])
    spectra: dict[int, Tensor] = {}
    for leaf in range(leaves):
        end = (leaf + 1) * block
        here = slice(end - block, end)
        x[..., here] = torch.linalg.solve_triangular(direct, b[..., here, None], upper=False)[..., 0]
        half = block * ((leaf + 1) & -(leaf + 1))  # this leaf ends the first half of a node of size 2·half
        reach = min(half, b.shape[-1] - end)
        if reach > 0:
            if half not in spectra:
                spectra[half] = torch.fft.rfft(column[..., : 2 * half], n=2 * half)
            known = torch.fft.rfft(x[..., end - half : end], n=2 * half)
            # circular of length 2·half: what wraps around lands in the first half
            heard = torch.fft.irfft(known * spectra[half], n=2 * half)[..., half : half + reach]
            b[..., end : end + reach] -= heard
    return x[..., :n]


def _toeplitz(column: Tensor) -> Tensor:
    """Lower triangular matrix (..., n, n) of a column (..., n)."""
    n = column.shape[-1]
    index = torch.arange(n, device=column.device)
    lag = index[:, None] - index
    return torch.where(lag >= 0, column[..., lag.clamp_min(0)], 0.0)


def solve_first_kind(
    kernel: Tensor, rhs: Tensor, dt: float, *, initial: Tensor | float = 0.0, rule: Rule = "trapezoid"
) -> Tensor:
    """g with ∫_0^t g(s) k(t-s) ds = f(t) on the grid t_i = iΔt.

    - "trapezoid": g_i on the grid with g_0 = `initial`; second order, with an undamped (-1)^i mode of noise;
    - "rectangle": Δt Σ_{j<i} k_{i-j-1} g_{j+1} = f_i, first order;
    - "midpoint": values g_{i-1/2} from k at the same midpoints, interpolated; second order.

    Args:
        kernel: k, (..., n), with k_0 ≠ 0.
        rhs: f, (..., n); f_0 = 0 is not read.
        dt: Δt.
        initial: g_0, (...).

    Returns:
        Shape (..., n), float64; element 0 is `initial`, element i ≥ 1 is g_i or g_{i-1/2}.
    """
    f, k = rhs[..., 1:].double() / dt, kernel.double()
    start = torch.as_tensor(initial, dtype=torch.float64, device=k.device).expand(f.shape[:-1])[..., None]
    if rule == "trapezoid":
        column = torch.cat([k[..., :1] / 2, k[..., 1:-1]], -1)
        f = f - start * k[..., 1:] / 2
    elif rule == "rectangle":
        column = k[..., :-1]
    elif rule == "midpoint":
        column = (k[..., :-1] + k[..., 1:]) / 2
    else:
        raise ValueError(f"rule must be one of {', '.join(map(repr, RULES))}, got {rule!r}")
    return torch.cat([start, solve_toeplitz(column, f)], -1)


def solve_second_kind(kernel: Tensor, rhs: Tensor, dt: float, *, diagonal: Tensor | float = 1.0) -> Tensor:
    """g with d g(t) + ∫_0^t g(s) k(t-s) ds = f(t) on the grid t_i = iΔt, by the trapezoid rule.

    Args:
        kernel: k, (..., n).
        rhs: f, (..., n).
        dt: Δt.
        diagonal: d ≠ 0, (...).

    Returns:
        Shape (..., n), float64; g_0 = f_0/d.
    """
    k, f = kernel.double(), rhs.double()
    d = torch.as_tensor(diagonal, dtype=torch.float64, device=k.device).expand(f.shape[:-1])[..., None]
    start = f[..., :1] / d
    column = torch.cat([d + dt * k[..., :1] / 2, dt * k[..., 1:-1].expand(*f.shape[:-1], -1)], -1)
    return torch.cat([start, solve_toeplitz(column, f[..., 1:] - dt / 2 * start * k[..., 1:])], -1)

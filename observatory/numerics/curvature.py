"""Directional derivatives of first and second order, many directions at once."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

Theta = Mapping[str, Tensor]
FORWARD_MODE_ERRORS = (NotImplementedError, RuntimeError, TypeError)  # see `lacks_forward_mode`


@functools.cache
def prepare_forward_mode() -> None:
    """Load the rules of forward mode without the deprecation warning that torch 2.13 gives about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.tanh, (torch.zeros(1),), (torch.ones(1),))


def lacks_forward_mode(error: Exception) -> bool:
    """Whether an error says that an operation has no forward-mode derivative, or none of a second one
    (batch_norm raises "ZeroTensors are immutable", up to torch 2.13).
    """
    return any(words in str(error) for words in ("forward AD", "forward-mode", "forward mode", "ZeroTensors"))


def _warn_of_reverse_mode(error: Exception) -> None:
    warnings.warn(
        f"an operation has no forward-mode derivative ({str(error)[:80]}); reverse mode is used twice "
        f"instead, "
        "which needs more memory",
        UserWarning,
        stacklevel=3,
    )


def ravel(theta: Theta, *, leading: int = 0) -> Tensor:
    """The vector θ of a dictionary of parameters, in its order.

    Args:
        theta: tensors of shape (*leading, *shape of the parameter).
        leading: number of leading dimensions that are kept.

    Returns:
        Shape (*leading, P).
    """
    return torch.cat([tensor.flatten(leading) for tensor in theta.values()], dim=leading)


def unravel(vectors: Tensor, like: Theta) -> dict[str, Tensor]:
    """The inverse of `ravel`: vectors (..., P) to tensors (..., *shape) named and shaped as in `like`.

    Raises:
        ValueError: if P is not the number of parameters of `like`.
    """
    sizes = [tensor.numel() for tensor in like.values()]
    if vectors.shape[-1] != sum(sizes):
        raise ValueError(
            f"vectors of length {vectors.shape[-1]} for {sum(sizes)} parameters: {', '.join(like)}"
        )
    parts = vectors.split(sizes, dim=-1)
    return {
        name: part.reshape(*vectors.shape[:-1], *tensor.shape)
        for (name, tensor), part in zip(like.items(), parts, strict=True)
    }


def directional_derivatives(
    function: Callable[[Theta], Tensor], theta: Theta, directions: Tensor, *, chunk_size: int | None = None
) -> Tensor:
    """J pᵢ = d/ds f(θ + s pᵢ) at s = 0, in forward mode; in reverse mode twice, with a warning, where
    that fails.

    Args:
        function: from parameters to a tensor of any shape.
        theta: parameters by name, P in all.
        directions: (k, P).
        chunk_size: directions at once; default all.

    Returns:
        Shape (k, *shape of the function's value). The cost of k forward passes; what does not depend on
        `theta` is computed once.
    """
    theta = dict(theta)
    prepare_forward_mode()

    def along(direction: Tensor) -> Tensor:
        return jvp(function, (theta,), (unravel(direction, theta),))[1]

    try:
        return vmap(along, chunk_size=chunk_size)(directions)
    except FORWARD_MODE_ERRORS as error:
        if not lacks_forward_mode(error):
            raise
        _warn_of_reverse_mode(error)
    value, pull_back = vjp(function, theta)[:2]
    # Jᵀu is linear in u, so that its own pull-back applies J
    push_forward = vjp(lambda u: pull_back(u)[0], torch.zeros_like(value))[1]
    return vmap(lambda p: push_forward(unravel(p, theta))[0], chunk_size=chunk_size)(directions)


def hessian_products(
    loss: Callable[[Theta], Tensor], theta: Theta, directions: Tensor, *, chunk_size: int | None = None
) -> Tensor:
    """H pᵢ with H = ∇²L(θ), forward over reverse; reverse over reverse, with a warning, where that fails.

    Args:
        loss: from parameters to a scalar.
        theta: parameters by name, P in all.
        directions: (k, P).
        chunk_size: directions at once; default all.

    Returns:
        Shape (k, P). The cost of about 2k gradients.
    """
    theta = dict(theta)
    prepare_forward_mode()

    def forward_over_reverse(direction: Tensor) -> Tensor:
        return ravel(jvp(grad(loss), (theta,), (unravel(direction, theta),))[1])

    try:
        return vmap(forward_over_reverse, chunk_size=chunk_size)(directions)
    except FORWARD_MODE_ERRORS as error:
        if not lacks_forward_mode(error):
            raise
        _warn_of_reverse_mode(error)
    pull_back = vjp(grad(loss), theta)[1]  # H is symmetric: pᵀH = (Hp)ᵀ
    return vmap(lambda p: ravel(pull_back(unravel(p, theta))[0]), chunk_size=chunk_size)(directions)


def leading_eigenvectors(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    count: int,
    *,
    tolerance: float = 1e-4,
    max_products: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The algebraically largest eigenvalues of a symmetric operator, and their eigenvectors, by Lanczos.

    All Lanczos vectors are kept and orthogonalised twice, so that no eigenvalue appears in copies.

    Args:
        product: from vectors (1, P) to A times them, (1, P).
        start: starting vector (P,), not orthogonal to what is sought.
        count: number of eigenpairs, at most P.
        tolerance: residual ‖Ap - λp‖ relative to the largest |λ|.
        max_products: number of products after which to stop with what there is; default 10 count + 100.

    Returns:
        Eigenvalues (count,) in falling order, and unit eigenvectors (count, P).

    Raises:
        ValueError: if `count` is not between 1 and P.
    """
    size = start.shape[-1]
    if not 1 <= count <= size:
        raise ValueError(f"there are between 1 and {size} eigenvectors, {count} were asked for")
    limit = min(size, max_products or 10 * count + 100)
    basis, alpha, beta = [start / start.norm()], [], []  # type: list[Tensor], list[float], list[float]
    for step in range(1, limit + 1):
        image = product(basis[-1][None])[0]
        alpha.append(float(image @ basis[-1]))
        stack = torch.stack(basis)
        for _ in range(2):  # twice is enough (Kahan): rounding of the first pass is removed by the second
            image = image - (stack @ image) @ stack
        norm = float(image.norm())
        values, vectors = _tridiagonal(alpha, beta)
        scale = float(values.abs().max())
        residual = norm * float(vectors[-1, -count:].abs().max())
        exhausted = step == limit or norm <= 1e-12 * max(scale, math.ulp(1.0))
        if step >= count and (exhausted or (step % 5 == 0 and residual <= tolerance * scale)):
            break
        if norm <= 1e-12 * max(scale, math.ulp(1.0)):  # an invariant subspace: go on from a new direction
            image = start.new_zeros(size)
            image[stack.square().sum(0).argmin()] = 1.0  # the coordinate that the basis covers least
            image, norm = image - (stack @ image) @ stack, 0.0
        beta.append(norm)
        basis.append(image / image.norm())
    top = vectors[:, -count:].flip(-1).to(start)
    return values[-count:].flip(-1).to(start), top.T @ torch.stack(basis)[: top.shape[0]]


def _tridiagonal(alpha: list[float], beta: list[float]) -> tuple[Tensor, Tensor]:
    diagonal, off = torch.tensor(alpha, dtype=torch.float64), torch.tensor(beta, dtype=torch.float64)
    matrix = torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1) if beta else torch.diag(diagonal)
    return torch.linalg.eigh(matrix)

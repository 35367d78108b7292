"""Collective variables of kernels too large to diagonalise, or even to form: estimates by random vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from observatory.looking.model import Forward, ModelFunction, Output
from observatory.looking.probe import Probe
from observatory.ntk.directions import output_directions
from observatory.ntk.gradients import batchable
from observatory.ntk.norms import squared_gradient_norms
from observatory.numerics.curvature import directional_derivatives, ravel

Product = Callable[[Tensor], Tensor]  # (k, n) vectors to (k, n), each multiplied by the matrix

CONVERGED = 1e-4  # residual of an eigenvalue, relative to it: its own error is of second order
TINY = torch.finfo(torch.float64).tiny
EXHAUSTED = 1e-6  # a Krylov space is complete where the next vector is this small, relative to λ₁


@dataclass(frozen=True)
class EstimatedVariables:
    """Estimates of the collective variables of a kernel matrix of n rows, each a scalar in float64.

    `…_error` are standard errors from the spread over the random vectors.
    """

    n: int
    trace: Tensor  # exact if it was given
    mean_trace: Tensor
    entropy: Tensor
    entropy_error: Tensor
    normalised_entropy: Tensor
    effective_rank: Tensor
    participation_ratio: Tensor
    participation_ratio_error: Tensor
    largest_eigenvalue: Tensor
    largest_share: Tensor


def estimated_variables(
    model: nn.Module | ModelFunction,
    x: Any,
    *,
    steps: int = 30,
    vectors: int = 10,
    at_once: int = 1,
    generator: torch.Generator | None = None,
    max_memory: int = 2**30,
    forward: Forward | None = None,
    output: Output | None = None,
    select: str | None = None,
) -> EstimatedVariables:
    """Collective variables of the full kernel (N·C rows) without forming it; use it where N·C > 4000.

    The trace is exact, from the gradient norms of every example; the rest is `estimated_spectrum` with
    `kernel_product`. The cost is that of C backward passes and 4/3 · steps · vectors products.

    Args:
        model, x, max_memory, forward, output, select: as for `empirical_ntk`.
        steps, vectors, generator: as for `estimated_spectrum`.
        at_once: vectors that are multiplied together, for speed, at the price of memory.
    """
    function = ModelFunction.of(model, forward=forward, output=output, select=select)
    norms = squared_gradient_norms(
        function, x, lambda outputs, _: output_directions("full", outputs), max_memory=max_memory
    )
    product, n = kernel_product(function, x, at_once=at_once)
    return estimated_spectrum(
        product,
        n,
        trace=norms.double().sum(),
        steps=steps,
        vectors=vectors,
        generator=generator,
        like=next(iter(function.parameters.values())),
    )


def kernel_product(
    model: nn.Module | ModelFunction,
    x: Any,
    *,
    at_once: int = 1,
    forward: Forward | None = None,
    output: Output | None = None,
    select: str | None = None,
) -> tuple[Product, int]:
    """Θv = J(Jᵀv), one backward and one forward-mode pass, and the number of rows N·C of Θ.

    Args:
        model, x, forward, output, select: as for `empirical_ntk`.
        at_once: vectors that are multiplied together.

    Returns:
        The product of vectors (k, N·C), example-major as in `to_matrix`, and N·C.
    """
    if len(Probe(x)) == 0:
        raise ValueError("there are no examples to look at: the probe is empty")
    function = ModelFunction.of(model, forward=forward, output=output, select=select)
    theta = function.theta
    with batchable():
        outputs, pull_back = torch.func.vjp(lambda t: function(x, t), theta)[:2]

    def product(v: Tensor) -> Tensor:
        directions = v.to(outputs).view(-1, *outputs.shape)
        with batchable():
            pulled = torch.func.vmap(lambda u: ravel(pull_back(u)[0]), chunk_size=at_once)(directions)
            pushed = directional_derivatives(
                lambda t: function(x, dict(t)), theta, pulled, chunk_size=at_once
            )
        return pushed.flatten(1).to(v)

    return product, outputs.numel()


def estimated_spectrum(
    product: Product,
    n: int,
    *,
    trace: Tensor | float | None = None,
    steps: int = 30,
    vectors: int = 10,
    generator: torch.Generator | None = None,
    like: Tensor | None = None,
) -> EstimatedVariables:
    """Entropy, participation ratio and largest eigenvalue by stochastic Lanczos quadrature.

    Eigenvalues that have converged in a block Krylov space are taken as they are. For the rest,
    Tr f(K) ≈ Tr K · Σ_z zᵀf(K)z / Σ_z zᵀKz over random z on the sphere ‖z‖² = n - r
    orthogonal to these r eigenvectors (Ubaru, Chen, Saad 2017, doi:10.1137/16M1104974; Gambhir, Stathopoulos,
    Orginos 2017, arXiv:1603.05988). All in float64.

    Args:
        product: (k, n) to (k, n), the kernel matrix times each vector.
        n: rows of the matrix.
        trace: of the matrix, if it is known; otherwise it is estimated.
        steps: of Lanczos; a third as many find the eigenvalues that stand out.
        vectors: random z.
        generator: of the random vectors, on the CPU; default seeded by 0.
        like: a tensor on the device of the products.

    Raises:
        ValueError: if there are fewer than 2 vectors or 1 step, or no trace is left to describe.
    """
    if vectors < 2 or steps < 1:
        raise ValueError(
            f"an error needs at least 2 vectors, and Lanczos 1 step; got vectors={vectors}, steps={steps}"
        )
    generator = generator or torch.Generator().manual_seed(0)
    device = torch.device("cpu") if like is None else like.device

    def normal(k: int) -> Tensor:
        return torch.randn(k, n, generator=generator, dtype=torch.float64).to(device)

    top, basis = _converged(product, normal(min(vectors, n)), -(-steps // 3))

    def outside(z: Tensor) -> Tensor:
        return z - (z @ basis) @ basis.T

    z = functional.normalize(outside(normal(vectors)), dim=-1) * math.sqrt(n - len(top))
    nodes, weights = _quadrature(lambda z: outside(product(z)), z, min(steps, n))
    linear = (weights * nodes).sum(-1)  # zᵀKz, (vectors,)
    rest = linear.mean() if trace is None else torch.as_tensor(trace).to(linear) - top.sum()
    total = top.sum() + rest
    if not total > 0:
        raise ValueError(f"the trace of the kernel is {total:.3g}: it has no spectrum to describe")

    def sum_of(f: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Σ f(λ), with its standard error."""
        values = (weights * f(nodes)).sum(-1)
        if not linear.mean() > torch.finfo(linear.dtype).eps * total:
            return f(top).sum(), values.new_zeros(())  # the converged eigenvalues are all there are
        ratio = values.mean() / linear.mean()
        spread = (values - ratio * linear).std() / linear.mean() / math.sqrt(vectors)
        return f(top).sum() + ratio * rest, spread * rest.abs()

    entropy, entropy_error = sum_of(lambda w: torch.special.entr(w / total))
    squares, squares_error = sum_of(lambda w: (w / total).square())
    largest = torch.cat([top, nodes.flatten()]).max()
    return EstimatedVariables(
        n=n,
        trace=total,
        mean_trace=total / n,
        entropy=entropy,
        entropy_error=entropy_error,
        normalised_entropy=entropy / math.log(n) if n > 1 else torch.zeros_like(entropy),
        effective_rank=entropy.exp(),
        participation_ratio=1 / squares,
        participation_ratio_error=squares_error / squares.square(),
        largest_eigenvalue=largest,
        largest_share=largest / total,
    )


def _converged(product: Product, start: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (r,) and orthonormal eigenvectors (n, r) found in the Krylov space of several vectors.

    With several vectors, eigenvalues of that multiplicity are found, as those of Θ ≈ k ⊗ 1 over C outputs.

    Args:
        product: K times vectors.
        start: (k, n).
        depth: powers of K.
    """
    block = torch.linalg.qr(start.mT)[0]  # (n, k)
    basis, images, scale = block[:, :0], block[:, :0], 0.0
    for _ in range(depth):
        image = product(block.mT).mT
        basis, images = torch.cat([basis, block], 1), torch.cat([images, image], 1)
        for _ in range(2):  # once is not enough
            image = image - basis @ (basis.mT @ image)
        left, size, _ = torch.linalg.svd(image, full_matrices=False)
        scale = max(scale, float(images.norm(dim=0).max()))
        block = left[:, size > EXHAUSTED * scale]
        if block.shape[1] == 0:
            break
    between = basis.mT @ images
    theta, y = torch.linalg.eigh((between + between.mT) / 2)
    residual = (images @ y - (basis @ y) * theta).norm(dim=0)
    found = (residual <= CONVERGED * theta) & (theta > EXHAUSTED * theta.max())
    return theta[found], basis @ y[:, found]


def _quadrature(product: Product, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Gauss quadrature of zᵀf(K)z = Σ_k w_k f(θ_k) by Lanczos from each z, completely reorthogonalised.

    Args:
        product: K times vectors.
        start: z, (k, n).
        steps: nodes of each.

    Returns:
        θ and w, (k, steps). Where a Krylov space is complete earlier, weights are 0 from then on.
    """
    norms = start.norm(dim=-1, keepdim=True)
    basis = [start / norms.clamp_min(TINY)]
    alpha: list[Tensor] = []
    beta: list[Tensor] = []
    for _ in range(steps):
        moved = product(basis[-1])
        alpha.append((moved * basis[-1]).sum(-1))
        stacked = torch.stack(basis, -1)  # (k, n, steps so far)
        for _ in range(2):
            moved = moved - (stacked @ (stacked.mT @ moved[..., None]))[..., 0]
        size = moved.norm(dim=-1)
        size = torch.where(size > EXHAUSTED * torch.stack([*alpha, *beta, size]).abs().amax(0), size, 0)
        beta.append(size)
        basis.append(torch.where(size[:, None] > 0, moved / size.clamp_min(TINY)[:, None], 0))
    between = torch.stack(beta[:-1], -1) if steps > 1 else norms[:, :0]
    tridiagonal = torch.diag_embed(torch.stack(alpha, -1))
    tridiagonal = tridiagonal + torch.diag_embed(between, 1) + torch.diag_embed(between, -1)
    theta, s = torch.linalg.eigh(tridiagonal)
    return theta.clamp_min(0), s[:, 0].square() * norms.square()

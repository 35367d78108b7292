"""Nonlinear least squares, many problems side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Residuals = Callable[[Tensor], Tensor]  # (..., P) -> (..., R)
Linearisation = Callable[[Tensor], tuple[Tensor, Tensor]]  # (..., P) -> (..., R), (..., R, P)

SUCCESS, FAILURE = 1 / 5, 4.0  # factors of the damping
STIFFEST = 1e12  # damping at which a problem is given up: the step is nothing


@dataclass(frozen=True, eq=False)
class Fitted:
    """Where a least-squares problem stands; leading dimensions are independent problems."""

    x: Tensor  # (..., P)
    cost: Tensor  # ½ ‖r(x)‖², shape (...)
    damping: Tensor  # λ of the next step, shape (...)
    moved: Tensor  # largest |Δxᵢ| of the last step, shape (...); inf after a rejected one
    iterations: int = 0

    @classmethod
    def start(cls, x: Tensor, residuals: Residuals, *, damping: float = 1e-2) -> Fitted:
        """The beginning of a fit."""
        cost = half_squares(residuals(x))
        return cls(x, cost, torch.full_like(cost, damping), torch.full_like(cost, torch.inf))


def half_squares(r: Tensor) -> Tensor:
    """½ ‖r‖² of residuals (..., R); inf where they are not finite, so that no minimiser goes there."""
    return torch.nan_to_num(r.square().sum(-1) / 2, nan=torch.inf)


def levenberg_marquardt_step(
    residuals: Residuals, linearise: Linearisation, at: Fitted, *, largest: float = torch.inf
) -> Fitted:
    """One trial of (JᵀJ + λ diag JᵀJ) Δx = -Jᵀr, accepted in each problem that it improves.

    λ is divided by 5 on success and multiplied by 4 on failure, in each problem by itself (Marquardt, J.
    SIAM 11, 431 (1963)); a trial with residuals that are not finite fails.

    Args:
        linearise: residuals and Jacobian, see `jacobian_of`.
        largest: no coordinate moves further than this; the step is shortened as a whole.
    """
    r, jacobian = linearise(at.x)
    step = damped_step(r, jacobian, at.damping)
    step = (
        step * (largest / step.abs().amax(-1, keepdim=True).clamp_min(largest))
        if largest < torch.inf
        else step
    )
    proposed = at.x + step
    cost = half_squares(residuals(proposed))
    now = half_squares(r)
    better = cost < now
    return Fitted(
        torch.where(better[..., None], proposed, at.x),
        torch.where(better, cost, now),
        torch.where(better, SUCCESS * at.damping, FAILURE * at.damping).clamp(1e-14, STIFFEST),
        torch.where(better, step.abs().amax(-1), torch.inf),
        at.iterations + 1,
    )


def damped_step(r: Tensor, jacobian: Tensor, damping: Tensor) -> Tensor:
    """The minimiser Δ of ‖r + J Δ‖² + λ Σᵢ ‖J eᵢ‖² Δᵢ², shape (..., P); NaN where there is none."""
    length = jacobian.square().sum(-2).sqrt()
    unit = torch.where(length > 0, length, 1.0)  # a column of zeros: what cannot be seen does not move
    scaled = jacobian / unit[..., None, :]
    normal = scaled.mT @ scaled + torch.diag_embed(damping[..., None].expand_as(length))
    factor, failed = torch.linalg.cholesky_ex(normal)
    solution = torch.cholesky_solve(-(scaled.mT @ r[..., None]), factor).squeeze(-1) / unit
    return torch.where(failed[..., None] == 0, solution, torch.nan)


def levenberg_marquardt(
    residuals: Residuals,
    x: Tensor,
    *,
    linearise: Linearisation | None = None,
    tolerance: float = 1e-8,
    largest: float = torch.inf,
    max_iterations: int = 100,
) -> Fitted:
    """Minimise ½ ‖r(x)‖² in many problems at once, each with a damping of its own.

    Args:
        residuals: r(x), shape (..., P) to (..., R); problems do not depend on one another.
        x: the start, shape (..., P), in coordinates of order one.
        linearise: residuals with their Jacobian; default by forward mode, at the cost of P evaluations.
        tolerance: a problem has converged when no coordinate moves further in an accepted step. Never the
            cost: along a sloppy direction it hardly falls while the parameters are far off.
        largest: see `levenberg_marquardt_step`.
    """
    linearise = linearise or jacobian_of(residuals)
    fitted = Fitted.start(x, residuals)
    done = torch.zeros_like(fitted.cost, dtype=torch.bool)
    while fitted.iterations < max_iterations and not done.all():
        fitted = levenberg_marquardt_step(residuals, linearise, fitted, largest=largest)
        done = done | (fitted.moved <= tolerance) | (fitted.damping >= STIFFEST)
    return fitted


def jacobian_of(residuals: Residuals) -> Linearisation:
    """Residuals and Jacobian by forward mode: one direction per coordinate, for all problems together."""

    def linearise(x: Tensor) -> tuple[Tensor, Tensor]:
        basis = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)

        def along(direction: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.jvp(residuals, (x,), (direction.expand_as(x),))  # type: ignore[return-value]

        r, columns = torch.func.vmap(along, out_dims=(None, -1))(basis)  # type: ignore[arg-type]
        return r, columns

    return linearise


@dataclass(frozen=True, eq=False)
class Identifiability:
    """What a problem says of its unknowns, from the Fisher matrix JᵀJ of residuals in units of σ."""

    standard_errors: Tensor  # √ diag (JᵀJ)⁻¹, shape (..., P); inf for what cannot be seen
    correlation: Tensor  # of the estimates, shape (..., P, P)
    condition: Tensor  # largest over smallest eigenvalue of the Fisher matrix scaled to unit diagonal, (...)


def identifiability(jacobian: Tensor) -> Identifiability:
    """Standard errors, correlations and conditioning from a Jacobian (..., R, P), in float64.

    The Fisher matrix is scaled to unit diagonal before it is inverted, so that units do not matter; a
    condition number beyond 10¹⁰ means that some combination of the unknowns is not determined. NaN where the
    Jacobian is not finite.
    """
    finite = jacobian.isfinite().all(-1).all(-1)
    j = torch.where(finite[..., None, None], jacobian.double(), 1.0)  # LAPACK fails on NaN
    length = j.square().sum(-2).sqrt()
    seen = length > 0
    unit = torch.where(seen, length, 1.0)
    fisher = (j / unit[..., None, :]).mT @ (j / unit[..., None, :])
    eigenvalues, vectors = torch.linalg.eigh(fisher)
    floor = eigenvalues[..., -1:] * torch.finfo(j.dtype).eps
    covariance = (vectors / eigenvalues.clamp_min(floor)[..., None, :]) @ vectors.mT
    width = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    errors = torch.where(seen, width / unit, torch.inf)
    condition = torch.where(seen.all(-1), eigenvalues[..., -1] / eigenvalues[..., 0].clamp_min(0), torch.inf)
    correlation = covariance / (width[..., :, None] * width[..., None, :])
    return Identifiability(
        torch.where(finite[..., None], errors, torch.nan),
        torch.where(finite[..., None, None], correlation, torch.nan),
        torch.where(finite, condition, torch.nan),
    )

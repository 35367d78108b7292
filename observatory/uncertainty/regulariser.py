"""The choice of ς²: by validation likelihood, by evidence, or a fixed share of the mean eigenvalue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.looking.ranks import warn
from observatory.uncertainty.calibration import checked
from observatory.uncertainty.rigidity import FLOOR

GRID = 49  # values of ς² between FLOOR λ_max and λ_max
FEW = 200  # validation rows below which the profile overfits
FIXED = 1e-6  # of trace(C)/d


def fixed_reg(eigenvalues: Tensor) -> float:
    """ς² = 10⁻⁶ trace(C)/d, not below 10⁻¹² λ_max.

    Raises:
        ValueError: if all features are zero.
    """
    largest = float(eigenvalues[0])
    if largest == 0:
        raise ValueError("all features are zero: the network is dead, or nothing was accumulated")
    return max(FIXED * float(eigenvalues.mean()), FLOOR * largest)


def reg_grid(eigenvalues: Tensor) -> Tensor:
    """49 values of ς² from 10⁻¹² λ_max to λ_max, evenly spaced in the logarithm, ascending."""
    exponents = torch.linspace(math.log10(FLOOR), 0, GRID, dtype=torch.float64, device=eigenvalues.device)
    return eigenvalues[0].double() * 10**exponents


@dataclass(frozen=True)
class RegProfile:
    """The validation likelihood as a function of ς², with the best α at each."""

    reg: Tensor  # ς², (G,)
    nll: Tensor  # mean over rows and outputs of the negative log-likelihood, (G,) nat
    nll_error: Tensor  # its standard error at the best ς², ()
    best: float  # smallest ς² within half a standard error of the best

    @property
    def minimum(self) -> float:
        """ς² of the lowest value."""
        return float(self.reg[self.nll.argmin()])


def profile_reg(residuals: Tensor, features: Tensor, eigenvalues: Tensor, eigenvectors: Tensor) -> RegProfile:
    """Profile likelihood of ς² from validation rows; no refactorisation: s² = Σ_k (u_k·f)²/(λ_k + ς²).

    Ties within half a standard error of the best mean go to the smallest ς².

    Args:
        residuals: r, (n, O).
        features: f, (n, d).
        eigenvalues, eigenvectors: of C, (d,) and (d, d).
    """
    if len(residuals) < FEW:
        warn(f"ς² is chosen by {len(residuals)} validation rows; below {FEW} the choice overfits: fix reg=")
    grid = reg_grid(eigenvalues)
    projections = (features.double() @ eigenvectors).square()  # (n, d)
    raw = projections @ (1 / (eigenvalues[:, None] + grid))  # (n, G)
    r, _ = checked(residuals, raw[:, 0])
    ratio = r.square()[:, :, None] / raw[:, None]  # (n, O, G)
    alpha2 = ratio.mean(0)  # (O, G)
    each = 0.5 * (math.log(2 * math.pi) + alpha2.log() + raw.log()[:, None] + ratio / alpha2)  # (n, O, G)
    per_row = each.mean(1)
    nll = per_row.mean(0)
    best = int(nll.argmin())
    error = per_row[:, best].std() / math.sqrt(len(r)) if len(r) > 1 else nll.new_zeros(())
    smallest = int((nll <= nll[best] + 0.5 * error).nonzero()[0])
    return RegProfile(grid, nll, error, float(grid[smallest]))


def log_evidence(
    eigenvalues: Tensor, projections: Tensor, squares: Tensor, samples: int, reg: Tensor
) -> tuple[Tensor, Tensor]:
    """ln p(y) of Bayesian ridge regression with the noise at its best value, for each ς².

    ln p = -½[N ln 2π + N ln σ_n² + Σ_k ln(1 + λ_k/ς²) + (‖y - Fw‖² + ς²‖w‖²)/σ_n²],  w = A⁻¹Fᵀy;
    the last bracket is Q = yᵀy - Σ_k b_k²/(λ_k + ς²), and σ_n² = Q/N maximises it.

    Args:
        eigenvalues: λ of C, (d,).
        projections: b = UᵀFᵀY, (d, O).
        squares: Σ y², (O,).
        samples: N.
        reg: ς², (G,).

    Returns:
        ln p summed over outputs, (G,), and σ_n of each output, (G, O).
    """
    shrunk = 1 / (eigenvalues[:, None] + reg)  # (d, G)
    rest = (squares - shrunk.mT @ projections.square()).clamp_min(1e-15 * squares)  # (G, O)
    noise2 = rest / samples
    volume = torch.log1p(eigenvalues[:, None] / reg).sum(0)  # (G,)
    each = samples * (math.log(2 * math.pi) + 1 + noise2.log()) + volume[:, None]
    return -0.5 * each.sum(1), noise2.sqrt()

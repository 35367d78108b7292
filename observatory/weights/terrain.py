"""What the landscape says along the directions of a trajectory: curvature, flatness, noise."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.solvable.online_regression import continuum_covariance
from observatory.weights.balance import (
    circulation,
    commutator_ratio,
    entropy_production,
    rotation_frequency,
)
from observatory.weights.flatness import Flatness, flatness
from observatory.weights.landscape import Landscape
from observatory.weights.lines import Lines
from observatory.weights.noise import SgdSetting, noise_covariance


@dataclass(frozen=True, eq=False)
class Terrain:
    """The loss about θ₀ along k unit directions."""

    loss: Tensor  # L₀, scalar
    slope: Tensor  # p_i·∇L, (k,)
    hessian: Tensor  # PᵀHP, (k, k)
    noise: Tensor  # PᵀCP, (k, k), covariance of the gradients of single examples
    flatness: Tensor  # F_i, (k,), weight units; inf without a crossing, NaN where the loss is not positive
    left: Tensor  # crossing with s < 0, (k,)
    right: Tensor  # crossing with s > 0, (k,)

    @property
    def curvature(self) -> Tensor:
        """κ_i = p_iᵀHp_i, (k,)."""
        return self.hessian.diagonal()


def survey(landscape: Landscape, directions: Tensor, scale: Tensor, *, s_max: float = 1e3) -> Terrain:
    """Curvature, noise and flatness along unit directions.

    Args:
        landscape: about θ₀.
        directions: (k, P).
        scale: σ_i, (k,), where to start looking for a crossing that the curvature does not predict.
        s_max: where to give up looking, in weight units.
    """
    vectors = directions.double()
    slope = vectors @ landscape.gradient()
    hessian = vectors @ landscape.hessian_products(directions).mT
    hessian = (hessian + hessian.mT) / 2
    noise = noise_covariance(landscape, directions)
    width = _flatness(Lines(landscape, directions), slope, hessian.diagonal(), scale, s_max)
    return Terrain(width.loss, slope, hessian, noise, width.width, width.left, width.right)


def flatness_along(
    landscape: Landscape, directions: Tensor, scale: Tensor, *, s_max: float = 1e3
) -> Flatness:
    """Flatness alone, without the Hessian between directions and without the noise. Arguments as in
    `survey`.
    """
    lines = Lines(landscape, directions)
    slope, curvature = lines.derivatives()
    return _flatness(lines, slope, curvature, scale, s_max)


def _flatness(lines: Lines, slope: Tensor, curvature: Tensor, scale: Tensor, s_max: float) -> Flatness:
    loss = lines.landscape.value()
    if not bool(loss > 0):
        warnings.warn(
            f"the loss at the centre is {float(loss):g}, so that no flatness is defined; use the curvature",
            UserWarning,
            stacklevel=3,
        )
        unknown = torch.full_like(slope, torch.nan)
        return Flatness(unknown, unknown, unknown, loss)
    return flatness(lines, slopes=slope, curvature=curvature, scale=scale, s_max=s_max)


@dataclass(frozen=True)
class Irreversibility:
    """Circulation of the stationary state in k directions, from H and the noise; NaN where H is not
    positive.
    """

    commutator: Tensor  # ‖[H, C]‖/‖HC‖, scalar
    entropy_production: Tensor  # Π per unit of ηt, scalar
    rotation: Tensor  # fastest rotation, radians per unit of ηt, scalar


def irreversibility(terrain: Terrain, setting: SgdSetting) -> Irreversibility:
    """Π and the fastest rotation of the Ornstein-Uhlenbeck process with the measured H and C (weight
    decay added).
    """
    hessian = terrain.hessian + setting.weight_decay * torch.eye(len(terrain.hessian)).to(terrain.hessian)
    diffusion = setting.effective_rate * setting.noise_scale / 2 * terrain.noise
    commutator = commutator_ratio(hessian, terrain.noise)
    unknown = torch.full_like(commutator, torch.nan)
    known = bool(hessian.isfinite().all() and diffusion.isfinite().all())
    if not known or float(torch.linalg.eigvalsh(hessian)[0]) <= 0 or _singular(diffusion):
        return Irreversibility(commutator, unknown, unknown)
    sigma = continuum_covariance(hessian, 2 * diffusion / setting.effective_rate, setting.effective_rate)
    turning = circulation(hessian, sigma)
    return Irreversibility(
        commutator, entropy_production(diffusion, turning, sigma), rotation_frequency(turning, sigma)
    )


def _singular(matrix: Tensor) -> bool:
    values = torch.linalg.eigvalsh(matrix)
    return float(values[0]) <= 1e-12 * float(values[-1])

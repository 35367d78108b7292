"""The setting of SGD, the covariance of its noise in a few directions, and the temperatures it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from observatory.looking.look import Look
from observatory.solvable.online_regression import Sampling, finite_population_factor
from observatory.weights.landscape import Landscape


@dataclass(frozen=True)
class SgdSetting:
    """What stochastic gradient descent does to the noise: v ← βv + g, θ ← θ - ηv on batches of S examples."""

    learning_rate: float  # η
    batch_size: int  # S, over all processes
    samples: int  # N, examples in the training set
    momentum: float = 0.0  # β
    weight_decay: float = 0.0  # λ, added to the gradient as λθ
    sampling: Sampling = "without replacement"  # of the examples of one batch

    @property
    def noise_scale(self) -> float:
        """f/S: the covariance of a batch's gradient in units of that of a single example's."""
        return finite_population_factor(self.sampling, self.batch_size, self.samples) / self.batch_size

    @property
    def effective_rate(self) -> float:
        """η/(1 - β): the learning rate of the plain SGD that momentum amounts to where ηh ≪ 1 - β."""
        return self.learning_rate / (1 - self.momentum)


def sgd_coefficients(group: Mapping[str, Any], optimizer: Optimizer) -> tuple[float, float, float]:
    """(η, β, λ) of a parameter group.

    Raises:
        ValueError: if the optimizer is not plain SGD: the noise formulas do not hold for it.
    """
    if not isinstance(optimizer, SGD) or group["nesterov"] or group["dampening"]:
        raise ValueError(
            f"the noise formulas hold for SGD without dampening or Nesterov's momentum, not for "
            f"{type(optimizer).__name__}"
        )
    return float(group["lr"]), float(group["momentum"]), float(group["weight_decay"])


def sgd_group(look: Look) -> tuple[Mapping[str, Any] | None, tuple[float, float, float] | None]:
    """The parameter group of the first selected weight, and its (η, β, λ) if it belongs to plain SGD."""
    name, seen = next(iter(look.model.theta.items()))
    place = _place(look.owned.get(name, seen))
    for optimizer in look.optimizers:
        for group in optimizer.param_groups:
            if any(_place(p) == place for p in group["params"]):
                try:
                    return group, sgd_coefficients(group, optimizer)
                except ValueError:
                    return group, None
    return None, None


def _place(parameter: Tensor) -> int:
    """Where its numbers lie, or those of this rank's shard."""
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).data_ptr()


def batch_sampling(loader: DataLoader) -> tuple[int, int, Sampling]:
    """(S, N, how) of a loader: read from its sampler, over all processes of a distributed one.

    Raises:
        ValueError: if the loader draws in a way of its own.
    """
    sampler = loader.sampler
    if loader.batch_size is None or not isinstance(
        sampler, RandomSampler | SequentialSampler | DistributedSampler
    ):
        raise ValueError(
            f"{type(sampler).__name__} does not say how it draws: give batch_size=, samples= and sampling="
        )
    replaced = bool(getattr(sampler, "replacement", False))
    ranks = sampler.num_replicas if isinstance(sampler, DistributedSampler) else 1
    how: Sampling = "with replacement" if replaced else "without replacement"
    return loader.batch_size * ranks, len(loader.dataset), how  # type: ignore[arg-type]


def noise_covariance(landscape: Landscape, directions: Tensor) -> Tensor:
    """PᵀCP with C = (1/N) Σ_μ g_μg_μᵀ - ḡḡᵀ, the covariance of the gradients of single examples at θ₀.

    Args:
        landscape: over (a subset of) the training set.
        directions: (k, P).

    Returns:
        Shape (k, k), float64, at the price of k forward passes; the gradients themselves are never formed.
    """
    slopes = landscape.slopes(directions)
    centred = slopes - slopes.mean(0)
    return centred.mT @ centred / slopes.shape[0]


def temperature(noise: Tensor, setting: SgdSetting) -> Tensor:
    """T_i = ηc_i f/(2S), with η/(1 - β) for η under momentum: κ_iσ_i² of a direction in equilibrium with
    its noise.

    Args:
        noise: c_i = p_iᵀCp_i, any shape; the result has the same.
    """
    return setting.effective_rate * setting.noise_scale / 2 * noise


def lyapunov_residual(hessian: Tensor, covariance: Tensor, noise: Tensor, setting: SgdSetting) -> Tensor:
    """‖HΣ + ΣH - ηHΣH - ηC_S‖/‖ηC_S‖ in some directions: 0 where white noise in a quadratic well explains Σ.

    Args:
        hessian: PᵀHP, (..., k, k).
        covariance: Σ in the same directions, (..., k, k).
        noise: PᵀCP, (..., k, k).
    """
    eta = setting.effective_rate
    source = eta * setting.noise_scale * noise
    decayed = hessian + setting.weight_decay * torch.eye(hessian.shape[-1]).to(hessian)
    left = decayed @ covariance + covariance @ decayed - eta * decayed @ covariance @ decayed
    return torch.linalg.matrix_norm(left - source) / torch.linalg.matrix_norm(source)

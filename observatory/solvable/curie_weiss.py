"""The Curie-Weiss magnet: N spins that all couple to all, exactly, for any finite N.

p(M) ∝ binom(N, (N+M)/2) exp(βM²/2N), with magnetisation M = -N, -N+2, ..., N. As N → ∞ the magnet orders at
β_c = 1; for finite N the Fisher information about β has a peak that moves there. Everything is float64 and
in logarithms; leading dimensions of β are ensembles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Peak:
    """Maximum of the Fisher information per spin."""

    beta: Tensor  # 0-dimensional
    height: Tensor  # max F(β)/N, 0-dimensional


def magnetisations(spins: int) -> Tensor:
    """M = -N, -N+2, ..., N, shape (N + 1,).

    Raises:
        ValueError: if there is no spin.
    """
    if spins < 1:
        raise ValueError(f"a magnet needs at least one spin, got {spins}")
    return torch.arange(-spins, spins + 1, 2, dtype=torch.float64)


def log_multiplicity(magnetisation: Tensor, *, spins: int) -> Tensor:
    """ln binom(N, (N+M)/2): how many spin configurations have this magnetisation."""
    up = (spins + magnetisation.double()) / 2
    total = torch.lgamma(up.new_tensor(spins + 1.0))
    return total - torch.lgamma(up + 1) - torch.lgamma(spins - up + 1)


def log_partition(beta: Tensor, *, spins: int) -> Tensor:
    """ln Z(β), shape of β; differentiable."""
    return torch.logsumexp(_log_weights(beta, spins), -1)


def log_probabilities(beta: Tensor, *, spins: int) -> Tensor:
    """ln p(M) for all M in the order of `magnetisations`, shape (..., N + 1)."""
    return _log_weights(beta, spins).log_softmax(-1)


def fisher_information(beta: Tensor, *, spins: int) -> Tensor:
    """F(β) = ⟨(∂_β ln p)²⟩ = Var(M²/2N), shape of β. Divide by N for the information per spin."""
    interaction = magnetisations(spins).to(beta.device).square() / (2 * spins)
    p = log_probabilities(beta, spins=spins).exp()
    mean = (p * interaction).sum(-1, keepdim=True)
    return (p * (interaction - mean).square()).sum(-1)


def fisher_peak(*, spins: int, tolerance: float = 1e-7) -> Peak:
    """Where F(β)/N is largest, by grids that close in on the maximum.

    Args:
        spins: N ≥ 2 (below, the information is zero everywhere).
        tolerance: on β (a maximum is flat: rounding leaves about 1e-8); the height is then exact to rounding.

    Raises:
        ValueError: if there are fewer than two spins.
    """
    if spins < 2:
        raise ValueError(f"the information of {spins} spin vanishes at every β: it has no peak")
    low, high = 0.0, 4.0
    while high - low > tolerance:
        beta = torch.linspace(low, high, 33, dtype=torch.float64)
        best = int(fisher_information(beta, spins=spins).argmax())
        if best == len(beta) - 1:
            high *= 2  # few spins: the peak lies beyond
            continue
        low, high = float(beta[max(best - 1, 0)]), float(beta[best + 1])
    at = torch.tensor((low + high) / 2, dtype=torch.float64)
    return Peak(at, fisher_information(at, spins=spins) / spins)


def sample_magnetisations(
    beta: Tensor, count: int, *, spins: int, generator: torch.Generator | None = None
) -> Tensor:
    """Independent magnetisations, shape (count,), for one β."""
    p = log_probabilities(beta, spins=spins).exp()
    return magnetisations(spins).to(p.device)[
        torch.multinomial(p, count, replacement=True, generator=generator)
    ]


def _log_weights(beta: Tensor, spins: int) -> Tensor:
    m = magnetisations(spins).to(beta.device)
    return log_multiplicity(m, spins=spins) + beta.double()[..., None] * m.square() / (2 * spins)

"""Class probabilities averaged over Gaussian logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

LOG_SCALES = (-4.0, 14.0)  # of ln α² on features of unit scale


def probit(logits: Tensor, variance: Tensor) -> Tensor:
    """p̄ = softmax(z_k/√(1 + πV_kk/8)), or the sigmoid of a single logit (MacKay 1992, Neural Comput. 4, 720).

    With one variance for all classes this is a temperature T(x) = √(1 + πV/8): the most likely class stays.

    Args:
        logits: z, (n, K).
        variance: V_kk, (n, K) or (n, 1).
    """
    scaled = logits / (1 + math.pi / 8 * variance).sqrt()
    return torch.sigmoid(scaled) if logits.shape[-1] == 1 else torch.softmax(scaled, -1)


def monte_carlo(
    logits: Tensor, root: Tensor, samples: int, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Mean over logits drawn from N(z, SSᵀ) of their softmax (sigmoid), and the mutual information.

    Args:
        logits: z, (n, K).
        root: S, (n, K, K).
        samples: number of draws.
        generator: on the CPU.

    Returns:
        p̄ (n, K), and H[p̄] - E H[p] (n,) in nat: how much of the doubt is about the network's weights.
    """
    noise = torch.randn(samples, *logits.shape, generator=generator, dtype=logits.dtype).to(logits.device)
    drawn = logits + torch.einsum("nkj,mnj->mnk", root, noise)
    if logits.shape[-1] == 1:
        drawn = torch.cat([drawn, torch.zeros_like(drawn)], -1)
    log_p = torch.log_softmax(drawn.to(torch.promote_types(drawn.dtype, torch.float32)), -1)
    log_mean = torch.logsumexp(log_p, 0) - math.log(samples)
    doubt = entropy(log_mean.exp()) - entropy(log_p.exp()).mean(0)
    mean = log_mean.exp()
    return mean[..., : logits.shape[-1]], doubt


def entropy(probabilities: Tensor) -> Tensor:
    """-Σ p ln p over the last axis, nat; of a single probability that of p and 1 - p."""
    if probabilities.shape[-1] == 1:
        probabilities = torch.cat([probabilities, 1 - probabilities], -1)
    return torch.special.entr(probabilities).sum(-1)


def log_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """-ln p_y of each row, (n,) nat.

    Args:
        probabilities: (n, K), or (n, 1) of class 1.
        targets: (n,) integer classes.
    """
    p = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny)
    if p.shape[1] == 1:
        p = torch.cat([(1 - probabilities).clamp_min(torch.finfo(p.dtype).tiny), p], 1)
    return -p.log().gather(1, targets.long()[:, None])[:, 0]


def fit_scale(logits: Tensor, variance: Tensor, targets: Tensor) -> float:
    """α² of the covariance α² V with the smallest log loss of `probit`; 0 if none improves on the network.

    Args:
        logits, variance: (n, K) and (n, K) or (n, 1), with V before scaling.
        targets: (n,) integer classes.
    """
    z, v = logits.double(), variance.double()

    def loss(log_scale: float) -> float:
        return float(log_loss(probit(z, math.exp(log_scale) * v), targets).mean())

    best = _minimum(loss, *LOG_SCALES)
    plain = float(log_loss(probit(z, 0 * v), targets).mean())
    return math.exp(best) if loss(best) < plain else 0.0


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """T of softmax(z/T) with the smallest log loss: the baseline of one temperature for all inputs."""
    z = logits.double()

    def loss(log_temperature: float) -> float:
        return float(log_loss(probit(z / math.exp(log_temperature), torch.zeros_like(z)), targets).mean())

    return math.exp(_minimum(loss, -4.0, 4.0))


def _minimum(function: Callable[[float], float], low: float, high: float, points: int = 37) -> float:
    """Place of the smallest value on ever finer grids: the loss need not have one minimum only."""
    for _ in range(5):
        grid = torch.linspace(low, high, points).tolist()
        values = [function(x) for x in grid]
        best = values.index(min(values))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, points - 1)]
        points = 9
    return (low + high) / 2

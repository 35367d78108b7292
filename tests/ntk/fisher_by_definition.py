"""The Fisher information by its definition, and small networks to look at."""

from __future__ import annotations

import torch
from cases import jacobian
from torch import Tensor, nn

from observatory.looking import ModelFunction
from observatory.ntk.fisher_likelihoods import Likelihood

NAMES: tuple[Likelihood, ...] = ("categorical", "bernoulli", "poisson", "gaussian")


def curvature(name: Likelihood, f: Tensor, sigma2: float = 1.0) -> Tensor:
    """H_i = -∂² ln p/∂f², (N, C', C'), by automatic differentiation of -ln p."""
    shape = f.shape[1:]

    def loss(one: Tensor) -> Tensor:
        one = one.reshape(shape)
        if name == "categorical":
            return one.logsumexp(-1).sum()
        if name == "bernoulli":
            return nn.functional.softplus(one).sum()
        return one.exp().sum() if name == "poisson" else one.square().sum() / (2 * sigma2)

    hessian = torch.func.jacrev(torch.func.grad(loss))
    return torch.func.vmap(hessian)(f.detach().flatten(1) if f.ndim > 1 else f.detach()[:, None])


def targets_for(name: Likelihood, f: Tensor) -> Tensor:
    if name == "categorical":
        return torch.randint(f.shape[-1], f.shape[:-1])
    if name == "gaussian":
        return torch.randn(f.shape, dtype=torch.float64)
    return torch.randint(2, f.shape).double()


def explicit(module: nn.Module, x: Tensor, name: Likelihood) -> Tensor:
    """F = (1/N) Σ J_iᵀ H_i J_i, (P, P)."""
    j, f = jacobian(module, x), ModelFunction.of(module)(x)
    return torch.einsum("icp,icd,idq->pq", j, curvature(name, f), j) / len(x)


def small(n: int = 50) -> tuple[nn.Module, Tensor, Tensor]:
    """A 7-6-4 tanh network of moderately certain predictions."""
    net = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    with torch.no_grad():
        net[2].weight.mul_(3)
    return net, torch.randn(n, 7, dtype=torch.float64), torch.randint(4, (n,))


# Values

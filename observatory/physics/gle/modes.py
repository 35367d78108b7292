"""Modes of a particle with memory in any well: how much its rarely recorded positions can know."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from observatory.physics.gle.equilibrium import Equilibrium
from observatory.physics.gle.potentials import Potential

POINTS = 600  # of Gauss and Legendre, for integrals over positions
GRID = 801  # positions at which the density is tabulated
DECAYED = 1e-8  # modes below this after Δt do not count
LEAST = 1e-2  # p(x_k | past)/p(x_k); where modes that are left out make it smaller, the past is forgotten
LANES = 8192  # trajectories taken at once


@dataclass(frozen=True)
class Modes:
    """p(x₀, x₁, …) = p(x₀)p(x₁)… ⟨1|M(x₀) e^{-λΔt} M(x₁) e^{-λΔt} …|1⟩ of an equation with one exponential.

    M_ij(x) = E[ψᵢ⁺ψⱼ | x] of the modes ψⱼ of the Markovian embedding (x, v, f) and of those reversed in time.
    Exact where the modes left out have decayed after Δt.
    """

    rates: Tensor  # λⱼ, complex, rising real parts, the first 0, (r,)
    grid: Tensor  # x, (points,)
    weight: Tensor  # p(x) on the grid, sums to 1, (points,)
    overlap: Tensor  # M(x), complex, (points, r, r)

    def correlation(self, f: Tensor, g: Tensor, t: Tensor) -> Tensor:
        """⟨f(x₀)g(x_t)⟩ of functions on the grid, (times,)."""
        left = (self.weight * f).to(self.overlap) @ self.overlap[:, 0]
        right = (self.weight * g).to(self.overlap) @ self.overlap[:, :, 0]
        return (torch.exp(-t[:, None] * self.rates) @ (left * right)).real

    def remainder(self, dt: float) -> float:
        """e^{-λΔt} of the last mode: what is neglected of a transition is of that order."""
        return math.exp(-dt * float(self.rates[-1].real))

    def log_likelihood(self, x: Tensor, dt: float) -> Tensor:
        """ln of p(x₀, x₁, …)/(p(x₀)p(x₁)…) of each trajectory, (P,) of (P, N)."""
        return self.log_densities(x, dt).sum(1)

    def log_densities(self, x: Tensor, dt: float) -> Tensor:
        """ln of p(x_k | x₀ … x_{k-1})/p(x_k), k from 1, of each trajectory, (P, N - 1) of (P, N).

        Modes that have decayed to 10⁻⁸ after Δt are left out.
        """
        place = (x.double() - self.grid[0].item()) / float(self.grid[1] - self.grid[0])
        index = place.round().clamp(0, len(self.grid) - 1).long()
        left = torch.exp(-dt * self.rates.real) > DECAYED
        step = (self.overlap[:, left][:, :, left] * torch.exp(-dt * self.rates[left])).to(x.device)
        return torch.cat([_conditional(step, some) for some in index.split(LANES)])


def _conditional(step: Tensor, index: Tensor) -> Tensor:
    """ln of what each position adds, (P, N - 1), of M(x)e^{-λΔt} at the places (P, N) of a grid."""
    state, found = step[index[:, 0], 0], []
    for k in range(1, index.shape[1]):
        state = torch.einsum("pi,pij->pj", state, step[index[:, k]])
        ratio = state[:, :1].real
        found.append(ratio.clamp_min(LEAST).log())
        state = torch.where(ratio > LEAST, state / ratio, step[index[:, k], 0])
    return torch.cat(found, 1)


def embedded_modes(
    potential: Potential,
    *,
    mass: float,
    gamma: float,
    tau: float,
    kT: float,
    count: int = 16,
    degree: int = 32,
    order: int = 14,
) -> Modes:
    """The modes nearest to λ = 0 of m ẍ = -U' - (γ/τ)∫e^{-s/τ}ẋ(t-s)ds + F, without any sampling.

    In polynomials orthonormal under e^{-U/kT} and Hermite functions of v and f the backward generator is
    √(kT/m)(b⁺D - bD⁺) + √(γ/mτ)(c⁺b - b⁺c) - c⁺c/τ, D = ∂ₓ and b, c lowering the order of v and f. (Risken,
    The Fokker-Planck Equation, 1989, §10.)

    Args:
        potential: U, confining.
        mass: m.
        gamma: γ.
        tau: τ.
        kT: thermal energy.
        count: r.
        degree: polynomials of x.
        order: of v and f together, at most.

    Raises:
        ValueError: if U does not confine.
    """
    from scipy import sparse
    from scipy.sparse.linalg import eigs

    equilibrium = Equilibrium.of(potential, kT, torch.device("cpu"))
    if equilibrium is None:
        raise ValueError(f"{potential} does not confine: it has no modes")
    basis = _Polynomials(potential, kT, float(equilibrium.x[0]), float(equilibrium.x[-1]), degree)
    pairs = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    b, c = (_lowering(pairs, axis) for axis in (0, 1))
    D = sparse.csr_matrix(basis.derivative)
    inner = math.sqrt(gamma / (mass * tau)) * (c.T @ b - b.T @ c) - c.T @ c / tau
    L = math.sqrt(kT / mass) * (sparse.kron(D, b.T) - sparse.kron(D.T, b))
    L = (L + sparse.kron(sparse.identity(degree), inner)).tocsc()
    start = np.random.default_rng(0).standard_normal(L.shape[0])
    values, vectors = eigs(L, k=count, sigma=0.1 / tau, v0=start)  # 0 itself is an eigenvalue
    rank = np.argsort(-values.real)
    values, vectors = values[rank], vectors[:, rank].reshape(degree, len(pairs), count)
    reversed_in_time = np.array([(-1.0) ** i for i, _ in pairs])  # Lᵀ = ΘLΘ
    norm = np.einsum("ahj,h,ahj->j", vectors, reversed_in_time, vectors)
    vectors = vectors / np.sqrt(norm)
    grid = np.linspace(float(equilibrium.x[0]), float(equilibrium.x[-1]), GRID)
    psi = np.tensordot(basis.at(grid), vectors, (0, 0))  # (x, h, j)
    overlap = (psi * reversed_in_time[:, None]).swapaxes(1, 2) @ psi
    energy = potential.energy(torch.from_numpy(grid))
    weight = torch.exp((energy.min() - energy) / kT)
    return Modes(
        torch.from_numpy(-values), torch.from_numpy(grid), weight / weight.sum(), torch.from_numpy(overlap)
    )


class _Polynomials:
    """Orthonormal under e^{-U/kT}, by the recurrence of Lanczos on a quadrature (Gautschi 2004, §2.2)."""

    def __init__(self, potential: Potential, kT: float, low: float, high: float, degree: int) -> None:
        nodes, weight = np.polynomial.legendre.leggauss(POINTS)
        x = (low + high) / 2 + (high - low) / 2 * nodes
        energy = potential.energy(torch.from_numpy(x)).numpy()
        weight = weight * np.exp((energy.min() - energy) / kT)
        rows = [np.sqrt(weight / weight.sum())]
        for _ in range(degree - 1):
            new = x * rows[-1]
            for _ in range(2):  # twice is enough
                new = new - np.array(rows).T @ (np.array(rows) @ new)
            rows.append(new / np.linalg.norm(new))
        jacobi = (np.array(rows) * x) @ np.array(rows).T
        self.diagonal, self.off = np.diag(jacobi), np.diag(jacobi, 1)
        slope = self._recur(x)[1]
        derivative = (np.array(rows) * rows[0]) @ slope.T
        self.derivative = np.triu(derivative, 1)  # of a degree into lower ones

    def at(self, x: np.ndarray) -> np.ndarray:
        """Values, (degree, points)."""
        return self._recur(x)[0]

    def _recur(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        f, d = [np.ones_like(x)], [np.zeros_like(x)]
        for k, (a, b) in enumerate(zip(self.diagonal, self.off, strict=False)):
            before = (self.off[k - 1] * f[k - 1], self.off[k - 1] * d[k - 1]) if k else (0.0, 0.0)
            f.append(((x - a) * f[k] - before[0]) / b)
            d.append(((x - a) * d[k] + f[k] - before[1]) / b)
        return np.array(f), np.array(d)


def _lowering(pairs: list[tuple[int, int]], axis: int) -> Any:
    """√n |n-1⟩⟨n| on one of the two orders."""
    from scipy import sparse

    place = {pair: k for k, pair in enumerate(pairs)}
    found = sparse.lil_matrix((len(pairs), len(pairs)))
    for pair, k in place.items():
        if pair[axis]:
            below = (pair[0] - 1, pair[1]) if axis == 0 else (pair[0], pair[1] - 1)
            found[place[below], k] = math.sqrt(pair[axis])
    return found.tocsr()

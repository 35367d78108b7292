"""Parameters from simulated moments: a step of Gauss and Newton, and how well each is known after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CUT = 1e-4  # eigenvalues of the correlation matrix of moments below which they count as one
UNLIKE = 0.15  # of the range that is searched, between two starts
REACH = 0.5  # the longest step, in logarithms
DRAWS = 4000  # of the parameters as far as they are known


@dataclass(frozen=True)
class Refinement:
    """One step of Gauss and Newton towards the moments of data."""

    estimate: Tensor  # logarithms of the parameters, (p,)
    information: Tensor  # Fisher's, of the moments of the data alone, (p, p)
    distance: float  # squared, of the moments at the start: χ² where the equation explains the data
    freedom: int  # its expectation, moments less parameters


def refine(
    theta: Tensor, found: Tensor, target: Tensor, spread: Tensor, worth: float, prior: tuple[Tensor, Tensor]
) -> Refinement:
    """Moments are matched in the metric of their inverse covariance, which no other weights can better.

    The difference of the moments of data and simulation has the covariance C(1/P + 1/P'), C of one simulated
    trajectory. J is a central difference over ±δ, of trajectories that hear the same random numbers;
    what its noise adds to JᵀC⁻¹J is subtracted, so that what is not known does not seem known.
    (McFadden, Econometrica 57, 995 (1989); Gouriéroux, Monfort, Renault, J. Appl. Econom. 8, S85 (1993).)

    Args:
        theta: logarithms at which was simulated, (p,).
        found: moments of P trajectories at θ, θ + δ and θ - δ for each parameter, (1 + 2p, P, q).
        target: moments of the data, (q,).
        spread: δ, (p,).
        worth: P', how many trajectories of that length the data are.
        prior: centre and standard deviation of ln θ before the data, (p,).

    Returns:
        The step from θ, at most 0.5 for each logarithm; none where a simulation flew apart.
    """
    here, p, lanes = found[0], len(theta), found.shape[1]
    if not bool(found.isfinite().all()):
        return Refinement(theta, torch.zeros(p, p).to(theta), torch.inf, 1)
    whiten = _whitening(here)
    slopes = (found[1 : 1 + p] - found[1 + p :]) @ whiten.T / (2 * spread[:, None, None])
    J = slopes.mean(1).T  # (k, p) of slopes (p, P, k)
    off = (slopes - slopes.mean(1, keepdim=True)).flatten(1)
    noise = (off @ off.T) / (lanes * (lanes - 1))
    count = 1 / (1 / lanes + 1 / worth)
    r = whiten @ (target - here.mean(0))
    centre, wide = prior
    matrix = count * J.T @ J + torch.diag(wide**-2)
    step = torch.linalg.solve(matrix, count * J.T @ r - (theta - centre) / wide**2)
    information = worth * _positive(J.T @ J - noise)
    return Refinement(
        theta + step.clamp(-REACH, REACH), information, count * float(r @ r), max(1, len(r) - p)
    )


def possible(ends: Tensor, information: Tensor, low: Tensor, high: Tensor, seed: int) -> Tensor:
    """Draws of what is as likely as each end, (E, S, p), within the range that was searched.

    Args:
        ends: logarithms of the parameters, (E, p).
        information: Fisher's at each of them, (E, p, p); where it tells nothing, half the range is the error.
        low: ends of the range, (p,).
        high: the others.
        seed: of the draws.
    """
    wide = (high - low) / 2
    covariance = torch.linalg.inv(information + torch.diag(wide**-2))
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(DRAWS, len(wide), generator=generator, dtype=torch.float64).to(wide)
    found = ends[:, None] + draws @ torch.linalg.cholesky(covariance).mT
    return torch.minimum(torch.maximum(found, low), high)


def apart(mass: Tensor, distance: Tensor, scale: Tensor, most: int) -> Tensor:
    """Indices of at most `most` sets of small distance and of unlike masses; the best one first.

    Above the memory time it is masses that have aliases, each with frictions and times of its own.

    Args:
        mass: ln m, (S,).
        distance: (S,).
        scale: of ln m: sets count as unlike if they differ by a seventh of it.
    """
    chosen: list[int] = []
    for k in distance.nan_to_num(torch.inf).argsort().tolist():
        if all(abs(float(mass[k] - mass[j])) > UNLIKE * float(scale) for j in chosen):
            chosen.append(k)
    return torch.tensor(chosen[:most], device=mass.device)


def distances(found: Tensor, target: Tensor) -> Tensor:
    """Squared distance of moments (S, P, q) of several sets to a target, in the metric of the first; (S,).

    Infinite for sets whose simulation flew apart.
    """
    whole = found.isfinite().all(2).all(1)
    distance = torch.full_like(found[:, 0, 0], torch.inf)
    if bool(whole.any()):
        off = (found[whole].mean(1) - target) @ _whitening(found[whole][0]).T
        distance[whole] = off.square().sum(-1)
    return distance


def _whitening(m: Tensor) -> Tensor:
    """W with W C Wᵀ = 1 for the covariance C of one trajectory, (k, q); what repeats others is left out."""
    sigma = m.std(0)
    told = sigma > 1e-12 * sigma.max()
    scale = torch.where(told, sigma, torch.inf)
    values, vectors = torch.linalg.eigh(torch.cov((m / scale).T))
    kept = values > CUT * values[-1]
    return (vectors[:, kept] / values[kept].sqrt()).T / scale


def _positive(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0)) @ vectors.T

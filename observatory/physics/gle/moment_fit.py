"""The best sets of a search brought to the moments of data, and what the data leave open about each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from observatory.physics.gle.moments import chosen_lags, moments
from observatory.physics.gle.newton import apart, distances, possible, refine
from observatory.physics.gle.repeating import Repeating

STARTS = 4  # at most, if their masses are unlike
AS_NEAR = 2.6  # χ² for each parameter within which ends count as equally near: 95 % for three of them
SPREAD = 0.03, 0.2  # of ln θ, over which slopes are taken: twice the error, within these bounds


class MomentFit(nn.Module):
    """Steps of Gauss and Newton from several sets, on moments weighted by their inverse covariance.

    The mean over the later half of the steps is the result, with a normal distribution about it that is
    widened by √(χ²/ν) where that exceeds 1.

    Args:
        low: logarithms of the smallest parameters, (p,).
        high: of the largest.
        steps: how many.
        lags: of the correlations.
        lanes: particles in a simulation.
        seed: of the noise.
    """

    low: Tensor
    high: Tensor
    estimates: Tensor
    information: Tensor
    distances: Tensor
    taken: Tensor

    def __init__(self, low: Tensor, high: Tensor, *, steps: int, lags: int, lanes: int, seed: int) -> None:
        super().__init__()
        self.steps, self.lags, self.lanes, self.seed = steps, lags, lanes, seed
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        p = len(low)
        shapes = {"estimates": (p,), "information": (p, p), "distances": (2,)}  # χ² and its expectation
        for name, shape in shapes.items():
            self.register_buffer(name, torch.full((steps, STARTS, *shape), torch.nan, dtype=torch.float64))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
        self._worth = 0.0  # trajectories that the data are

    @property
    def done(self) -> bool:
        return int(self.taken) >= self.steps

    @property
    def misfit(self) -> float:
        """χ²/ν of the nearest set, 1 where the equation explains the data."""
        distance, freedom = self.distances[int(self.taken) - 1].unbind(-1)
        return float((distance / freedom).nan_to_num(torch.inf).min())

    def advance(self, x: Tensor, world: Repeating, sets: Tensor) -> None:
        """One step from each start; the first call chooses them among the sets (S, p)."""
        k, lags = int(self.taken), chosen_lags(self.lags, x.device)
        target = moments(x, world.potential, lags).mean(0)
        centres = self.estimates[k - 1] if k else self._starts(world, lags, target, sets)
        prior = (self.low + self.high) / 2, (self.high - self.low) / 2
        self._worth = x.numel() / world.samples
        for s in centres.isfinite().all(1).nonzero()[:, 0].tolist():
            spread = self._spread(s, prior[1])
            around = torch.cat([centres[s][None], centres[s] + spread.diag(), centres[s] - spread.diag()])
            found = world.moments(around, lags, self.lanes, self.seed + k)
            step = refine(centres[s], found, target, spread, self._worth, prior)
            self.estimates[k, s] = torch.minimum(torch.maximum(step.estimate, self.low), self.high)
            self.information[k, s] = step.information
            self.distances[k, s] = self.low.new_tensor([step.distance, step.freedom])
        self.taken += 1

    def scalars(self) -> dict[str, float]:
        """What is logged of it."""
        return {"misfit": self.misfit}

    def settled(self) -> tuple[Tensor, Tensor]:
        """The nearest end (p,), and draws (E, S, p) about each of the E ends that are as near."""
        half = self.steps // 2
        simulated = self.lanes * (self.steps - half)
        ends = self.estimates[half:].mean(0)
        distance = self.distances[-1, :, 0].nan_to_num(torch.inf)
        near = (distance <= distance.min() + AS_NEAR * len(self.low)) & ends.isfinite().all(1)
        excess = (distance / self.distances[-1, :, 1]).clamp_min(1)  # what has not closed in knows less
        known = self.information[half:].mean(0) / (excess * (1 + self._worth / simulated))[:, None, None]
        draws = possible(ends[near], known[near], self.low, self.high, self.seed)
        return ends[distance.argmin()], draws

    def _starts(self, world: Repeating, lags: Tensor, target: Tensor, sets: Tensor) -> Tensor:
        """The nearest ones of unlike masses, (STARTS, p), NaN where there are fewer."""
        distance = distances(world.moments(sets, lags, self.lanes, self.seed), target)
        unlike = apart(sets[:, 0], distance, self.high[0] - self.low[0], STARTS)
        starts = torch.full((STARTS, sets.shape[1]), torch.nan).to(sets)
        starts[: len(unlike)] = sets[unlike]
        return starts

    def _spread(self, start: int, wide: Tensor) -> Tensor:
        """δ of ln θ, (p,)."""
        if (k := int(self.taken)) == 0:
            return torch.full_like(wide, SPREAD[1])
        known = torch.linalg.inv(self.information[k - 1, start] + torch.diag(wide**-2))
        return (2 * known.diagonal().sqrt()).clamp(*SPREAD)

"""The best sets of a search brought to the largest likelihood of the recorded positions themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from observatory.physics.gle.newton import REACH, apart, possible
from observatory.physics.gle.repeating import Repeating

STARTS = 4  # at most, if their masses are unlike
AS_LIKELY = 3.9  # ln p within which ends count as equally likely: half of χ² at 95 % for three parameters
NEGLECTED = 1e-2  # the largest remainder of the modes for which they are used
SLOPE = 0.005  # of ln θ; where all but one combination is little known, 0.05 would shift it by its error
SETTLED = 0.005  # ln p still to be gained, below which a start has arrived
DAMPING, LEAST_DAMPING = 1e-2, 1e-4  # at first, relative to the information of each parameter
TRIALS = 3  # of the damping in a step
STRAIGHT, DOUBLINGS = 0.75, 3  # of what the slope promises, above which a step is doubled, at most so often
PART = 100_000  # positions, about, on which the first half of the steps is taken
PIECE = 256  # points; longer trajectories are cut, at the loss of one transition in so many


class PositionFit(nn.Module):
    """Steps of Levenberg and Marquardt from several sets, up the likelihood of one exponential.

    The likelihood is that of the modes of the embedding, without sampling
    (`observatory.physics.gle.modes.embedded_modes`). Fisher's information is the sum of the squared scores
    of all positions; its inverse is the bound of Cramér and Rao at the set, and the covariance of the result.

    Args:
        low: logarithms of the smallest parameters, (3,).
        high: of the largest.
        steps: how many.
        seed: of the draws.
    """

    low: Tensor
    high: Tensor
    estimates: Tensor
    information: Tensor
    log_likelihood: Tensor
    damping: Tensor
    arrived: Tensor
    taken: Tensor

    def __init__(self, low: Tensor, high: Tensor, *, steps: int, seed: int) -> None:
        super().__init__()
        self.steps, self.seed = steps, seed
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        p = len(low)
        self.register_buffer("estimates", torch.full((STARTS, p), torch.nan, dtype=torch.float64))
        self.register_buffer("information", torch.zeros(STARTS, p, p, dtype=torch.float64))
        self.register_buffer("log_likelihood", torch.full((STARTS,), -torch.inf, dtype=torch.float64))
        self.register_buffer("damping", torch.full((STARTS,), DAMPING, dtype=torch.float64))
        self.register_buffer("arrived", torch.zeros(STARTS, dtype=torch.bool))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    @property
    def done(self) -> bool:
        return int(self.taken) >= self.steps

    @property
    def bound(self) -> Tensor:
        """Standard errors of ln θ that no unbiased estimator betters at the likeliest set, (3,).

        Infinite if its neighbourhood is not resolved.
        """
        best = self.information[self.log_likelihood.argmax()]
        if float(torch.linalg.eigvalsh(best)[0]) <= 0:
            return torch.full_like(self.low, torch.inf)
        return torch.linalg.inv(best).diagonal().sqrt()

    def advance(self, x: Tensor, world: Repeating, sets: Tensor) -> None:
        """One step from each start; the first call chooses them among the sets (S, 3).

        Raises:
            ValueError: if Δt is too short for the likelihood of any of the sets.
        """
        whole = _pieces(x)
        part = whole[: PART // whole.shape[1] + 1]
        if not int(self.taken):
            self._choose(part, world, sets)
        early = int(self.taken) < self.steps // 2
        if int(self.taken) == self.steps // 2 and len(part) < len(whole):
            self._begin_again(whole, world)
        for s in self.log_likelihood.isfinite().nonzero()[:, 0].tolist():
            if not (bool(self.arrived[s]) or self._repeats(s)):
                self._climb(s, part if early else whole, world)
        self.taken += 1

    def scalars(self) -> dict[str, float]:
        """What is logged of it: the bounds, and 1 once the likeliest start has arrived."""
        names = "bound_mass", "bound_friction", "bound_memory_time"
        arrived = float(self.arrived[self.log_likelihood.argmax()])
        return dict(zip(names, self.bound.tolist(), strict=True)) | {"arrived": arrived}

    def settled(self) -> tuple[Tensor, Tensor]:
        """The likeliest end (3,), and draws (E, S, 3) about each of the E ends that are as likely."""
        best = self.log_likelihood.max()
        likely = (self.log_likelihood >= best - AS_LIKELY).tolist()
        near = torch.tensor([likely[s] and not self._repeats(s) for s in range(STARTS)])
        draws = possible(self.estimates[near], self.information[near], self.low, self.high, self.seed)
        return self.estimates[self.log_likelihood.argmax()], draws

    def _choose(self, x: Tensor, world: Repeating, sets: Tensor) -> None:
        """The likeliest sets of unlike masses."""
        found = torch.stack([_log_densities(x, world, theta).sum() for theta in sets])
        if not bool(found.isfinite().any()):
            raise ValueError(
                f"Δt = {world.dt:g} is too short for the likelihood of positions: the modes of none of "
                f"{len(sets)} sets decay within it; refine on moments"
            )
        unlike = apart(sets[:, 0], -found, self.high[0] - self.low[0], STARTS)
        self.estimates[: len(unlike)], self.log_likelihood[: len(unlike)] = sets[unlike], found[unlike]

    def _begin_again(self, x: Tensor, world: Repeating) -> None:
        """From where the part of the data led, on all of them; not from ends that are another's."""
        self.arrived[:], self.damping[:], self.information[:] = False, DAMPING, 0.0
        for s in self.log_likelihood.isfinite().nonzero()[:, 0].tolist():
            self.log_likelihood[s] = _log_densities(x, world, self.estimates[s]).sum()

    def _climb(self, s: int, x: Tensor, world: Repeating) -> None:
        """The damping rises until the likelihood does, and falls after it did."""
        theta = self.estimates[s].clone()  # (3,)
        score, information = _slopes(x, world, theta)
        if not bool(information.isfinite().all()):  # next to sets that the modes do not resolve
            self.arrived[s] = True
            return
        self.information[s] = information
        outward = torch.where(score > 0, theta >= self.high, theta <= self.low)
        score = torch.where(outward, 0.0, score)
        scale = information.diagonal().clamp_min(1e-9 * float(information.diagonal().max()))
        for _ in range(TRIALS):
            step = torch.linalg.solve(information + self.damping[s] * scale.diag(), score)
            if float(score @ step) / 2 < SETTLED:
                self.arrived[s] = True
                return
            step = step * (REACH / step.abs().max()).clamp_max(1)
            if self._rises(s, theta, step, float(score @ step), x, world):
                self.damping[s] = max(float(self.damping[s]) / 10, LEAST_DAMPING)
                return
            self.damping[s] *= 10

    def _rises(self, s: int, theta: Tensor, step: Tensor, slope: float, x: Tensor, world: Repeating) -> bool:
        """Whether a step finds more likelihood; it is doubled while that rises almost as its slope says."""
        start = float(self.log_likelihood[s])
        for doubled in range(DOUBLINGS + 1):
            there = self._within(theta + 2**doubled * step)
            value = _log_densities(x, world, there).sum()
            if not bool(value > self.log_likelihood[s]):
                return doubled > 0
            self.estimates[s], self.log_likelihood[s] = there, value
            if float(value) - start < STRAIGHT * 2**doubled * slope:
                break
        return True

    def _repeats(self, s: int) -> bool:
        """Whether a likelier start is within a standard error: both are on their way to the same end."""
        off = self.estimates - self.estimates[s]
        near = torch.einsum("ti,tij,tj->t", off, self.information, off) < 1
        known = self.information.diagonal(dim1=1, dim2=2).amin(1) > 0
        return bool((near & known & (self.log_likelihood > self.log_likelihood[s])).any())

    def _within(self, theta: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(theta, self.low), self.high)


def _slopes(x: Tensor, world: Repeating, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Score (3,) and Fisher's information (3, 3) of all positions, by central differences."""
    sides = SLOPE * torch.eye(len(theta)).to(theta)
    each = [
        (_log_densities(x, world, theta + side) - _log_densities(x, world, theta - side)).flatten()
        for side in sides
    ]
    scores = torch.stack(each) / (2 * SLOPE)  # (3, positions)
    return scores.sum(1), scores @ scores.T


def _log_densities(x: Tensor, world: Repeating, theta: Tensor) -> Tensor:
    """ln of what each position adds, (P, N - 1); -∞ where the modes do not resolve it."""
    modes = world.modes(theta)
    if modes.remainder(world.dt) > NEGLECTED:
        return torch.full_like(x[:, 1:], -torch.inf)
    return modes.log_densities(x, world.dt)


def _pieces(x: Tensor) -> Tensor:
    """Trajectories (P, N) of at most 256 points each."""
    count = -(-x.shape[1] // PIECE)
    length = x.shape[1] // count
    return x[:, : count * length].reshape(-1, length)

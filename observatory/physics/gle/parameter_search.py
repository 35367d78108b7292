"""Parameter sets that are proposed, evaluated by somebody else, and remembered with their losses."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from observatory.numerics.bayesian_search import (
    Surrogate,
    candidates,
    fit_surrogate,
    minimiser,
    propose,
    propose_with_botorch,
    propose_with_cma,
    sobol,
)

SMALLEST = 1e-12  # added to a loss before its logarithm is taken
MOST = 400  # sets behind the surrogate, whose cost grows as their cube
Search = Literal["gaussian_process", "botorch", "cma"]


class ParameterSearch(nn.Module):
    """First Sobol points, then the sets of largest expected improvement of a loss with noise.

    A Gaussian process on the logarithms of the parameters models the logarithm of the loss. What was
    evaluated is kept in buffers; everything else follows from it, so that an interrupted search goes on.

    Args:
        low: logarithms of the smallest parameters, (p,).
        high: of the largest.
        budget: sets altogether.
        batch: sets proposed at once.
        initial: Sobol points.
        kind: the built-in process, BoTorch, or an evolution strategy.
        seed: of the points.
    """

    low: Tensor
    high: Tensor
    theta: Tensor
    losses: Tensor
    count: Tensor

    def __init__(
        self, low: Tensor, high: Tensor, *, budget: int, batch: int, initial: int, kind: Search, seed: int
    ) -> None:
        super().__init__()
        self.budget, self.batch, self.initial, self.kind, self.seed = budget, batch, initial, kind, seed
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.register_buffer("theta", torch.full((budget, len(low)), torch.nan, dtype=torch.float64))
        self.register_buffer("losses", torch.full((budget,), torch.nan, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self._fitted: Surrogate | None = None
        self._fitted_to = 0  # sets

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return int(self.count) >= self.budget

    @property
    def informed(self) -> bool:
        """Whether there are enough sets to conclude anything from."""
        return int(self.count) >= min(self.initial, self.budget)

    def propose(self) -> Tensor:
        """The logarithms to be evaluated next, (S, p), S ≤ batch."""
        done = int(self.count)
        return self._logarithms(self._proposals(done, min(self.batch, self.budget - done)))

    def record(self, theta: Tensor, losses: Tensor) -> None:
        """What was evaluated, (S, p) and (S,); NaN for simulations that flew apart."""
        done = int(self.count)
        self.theta[done : done + len(theta)], self.losses[done : done + len(theta)] = theta, losses
        self.count += len(theta)

    def best(self) -> Tensor:
        """Logarithms where the surrogate is lowest, (p,)."""
        return self._logarithms(minimiser(self._surrogate(), self.seed))

    def left_open(self, scatter: float) -> Tensor:
        """Sets whose ln loss, as far as known, exceeds that of the best by no more, (S, p); it first."""
        surrogate = self._surrogate()
        pool = np.concatenate([minimiser(surrogate, self.seed)[None], candidates(surrogate, self.seed)])
        mean, spread = surrogate.predict(pool)
        return self._logarithms(pool[mean - spread <= mean[0] + scatter])

    def evaluated(self, most: int) -> Tensor:
        """Of the sets themselves those of smallest loss, (most, p)."""
        return self.theta[self.losses[: int(self.count)].nan_to_num(torch.inf).argsort()[:most]]

    def smallest(self) -> float:
        """The smallest loss: too low, where losses have noise."""
        return float(self.losses[: int(self.count)].nan_to_num(torch.inf).min())

    def _proposals(self, done: int, count: int) -> np.ndarray:
        p = self.theta.shape[1]
        if done < self.initial:
            return sobol(done + count, p, self.seed)[done:]
        if self.kind == "cma":
            return propose_with_cma(
                self._unit(self.theta[:done]), self._log_losses().numpy(), self.initial, count, self.seed
            )
        surrogate = self._surrogate()
        if self.kind == "botorch":
            return propose_with_botorch(surrogate.x, np.asarray(self._log_losses()), count, self.seed + done)
        return propose(surrogate, count, self.seed + done)

    def _log_losses(self) -> Tensor:
        """ln L, with the worst finite value for simulations that flew apart.

        Raises:
            ValueError: if all of them did.
        """
        values = (self.losses[: int(self.count)] + SMALLEST).log().cpu()
        if not bool(values.isfinite().any()):
            raise ValueError(
                f"all {len(values)} simulations flew apart: give a smaller step, or search heavier masses"
            )
        return values.nan_to_num(nan=torch.inf).clamp_max(values[values.isfinite()].max())

    def _surrogate(self) -> Surrogate:
        """Of the best sets so far; the conclusion of one call serves the proposals of the next."""
        if self._fitted is None or self._fitted_to != int(self.count):
            values = self._log_losses()
            best = values.argsort()[:MOST].sort().values
            self._fitted = fit_surrogate(self._unit(self.theta[best]), values[best].numpy())
            self._fitted_to = int(self.count)
        return self._fitted

    def _unit(self, theta: Tensor) -> np.ndarray:
        return ((theta - self.low) / (self.high - self.low)).cpu().numpy()

    def _logarithms(self, unit: np.ndarray) -> Tensor:
        """Of places in the unit cube, (..., p)."""
        return self.low + torch.from_numpy(unit).to(self.low) * (self.high - self.low)

"""Gauss-Newton steps of an assimilation, as an iterative method of the one loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from observatory.numerics.least_squares import Fitted, levenberg_marquardt_step
from observatory.physics.assimilation.assimilation import Assimilation, Coordinates
from observatory.physics.assimilation.sensitivities import Problem


class LevenbergMarquardt(nn.Module):
    """One damped Gauss-Newton step of all trajectories per call, each with a damping of its own; for
    `Iterate`.

    The weight of the gaps between segments rises from stage to stage: weak ones let each segment follow
    its data while the parameters are wrong, strong ones make a trajectory of the segments in the end.

    Args:
        model: the fit.
        matching: weights μ of the gaps, stage by stage; without segments one stage of any weight.
        iterations: steps per stage.
        largest: no coordinate moves further in one step; in the logarithm of a rate.
    """

    damping: Tensor
    steps: Tensor

    def __init__(
        self,
        model: Assimilation,
        matching: Sequence[float] = (1.0,),
        iterations: int = 10,
        largest: float = 0.5,
    ) -> None:
        super().__init__()
        self.model = model
        self.matching, self.iterations, self.largest = tuple(matching), iterations, largest
        together = any(not unknown.individual for unknown in model.unknowns.values())
        self.register_buffer("damping", model.states.new_full((1 if together else model.systems,), 1e-2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, query: Any) -> Tensor:
        """What the model predicts."""
        return self.model(query)

    @torch.no_grad()
    def advance(self, batch: Any) -> dict[str, Tensor]:
        """One step with all trajectories in the batch."""
        query, values = self.model.begin(batch)
        if not self.model.seen[query.which].all():
            with torch.enable_grad():
                self.model.training_loss(batch)  # it says what is wrong with data or start
        done = int(self.steps)
        self.model.matching.fill_(self.matching[min(done // self.iterations, len(self.matching) - 1)])
        if done % self.iterations == 0 and done < self.iterations * len(self.matching):
            self.damping.fill_(1e-2)
        problem = Problem(self.model, query, values)
        x = problem.pack(self.model.coordinates)
        before = Fitted(x, torch.full_like(self.damping, torch.inf), self.damping, self.damping)
        after = levenberg_marquardt_step(problem.residuals, problem.linearise, before, largest=self.largest)
        self._accept(problem.unpack(after.x))
        self.model.project()
        self.damping.copy_(after.damping)
        self.steps += 1
        moved = after.moved[after.moved.isfinite()]
        step = moved.max() if len(moved) else moved.new_zeros(())
        return {
            "loss": after.cost.sum() / values.isfinite().sum(),
            "step": step,
        } | self.model.validation_metrics(batch)

    def _accept(self, at: Coordinates) -> None:
        own = self.model.coordinates
        own.states.copy_(at.states)
        for name, value in at.z.items():
            own.z[name].copy_(value)

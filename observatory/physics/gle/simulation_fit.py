"""A kernel whose simulated correlations are those of data at any time step: Gaussian-process optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

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
from observatory.physics.gle.direct_fit import fit_exponentials
from observatory.physics.gle.estimators import positions_of
from observatory.physics.gle.incumbent import Incumbent, integrals_of
from observatory.physics.gle.inversion import kernel_of_correlations
from observatory.physics.gle.kernels import ExponentialKernel
from observatory.physics.gle.matching import matched_correlations, mismatch
from observatory.physics.gle.moments import apart, chosen_lags, distances, moments, refine
from observatory.physics.gle.particle import Particle
from observatory.physics.gle.potentials import Potential, free_energy
from observatory.physics.gle.repeating import Repeating

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPEATS = 8  # independent simulations at the optimum: the noise of the loss
SMALLEST = 1e-12  # added to a loss before its logarithm is taken
MOST = 400  # sets behind the surrogate, whose cost grows as their cube
CONTENDERS = 12  # sets of those not excluded, and of the best, that the refinement looks at
STARTS = 4  # of these, at which it starts, if their masses are unlike
AS_NEAR = 2.6  # χ² for each parameter within which ends count as equally near: 95 % for three of them
SPREAD = 0.03, 0.2  # of ln θ, over which slopes are taken: twice the error, within these bounds
DRAWS = 4000  # of the parameters as far as they are known
Range = tuple[float, float]
Search = Literal["gaussian_process", "botorch", "cma"]


class SimulationFit(nn.Module):
    """Mass, frictions and times of Γ = Σ(γᵢ/τᵢ)e^{-t/τᵢ} + cosines by simulation, for any U and time step.

    Each set of parameters is simulated with a step h ≪ Δt, thinned to Δt, and put through the estimators of
    the data; the loss is the mean squared mismatch of C_vv, C_xx and C_xU', each over its value at 0. Its
    logarithm is modelled by a Gaussian process on the logarithms of the parameters; `advance` evaluates a
    batch of sets, first Sobol points, then those of largest expected improvement. All sets hear the same
    random numbers. Other than direct inversion this holds for Δt above the memory time, up to the slowest
    time in the data (Tepper, Dalton, Netz, J. Chem. Theory Comput. 20, 3061 (2024), arXiv:2401.09249).

    A loss in which all lags weigh alike leaves the memory time open where the data do not. With
    `refinements`, once the budget is spent, each further call takes a step of Gauss and Newton on moments
    that are weighted by their inverse covariance (`observatory.physics.gle.moments`), from up to four sets
    of unlike masses that the search has found best or left open. The mean of the later half is the result;
    ranges are then 95 % of a normal distribution, widened by √(χ²/ν) where that exceeds 1, and joined over
    all starts that end as near to the data.

    A batch is (P, N) or (P, N, 1), all trajectories. `excess` ≤ 0 says that the data cannot be told from one
    more simulation: the rule to stop at, in the loop by Lightning's `EarlyStopping(monitor="train/excess",
    strict=False, stopping_threshold=0)` with a large `patience`.

    The scalars of direct inversion of the same correlations stand beside, as direct_friction and so on.

    Args:
        dt: Δt of the data.
        kT: thermal energy.
        mass: range of m that is searched.
        gamma: of each γᵢ.
        tau: of each τᵢ.
        cosines: of a, σ and ω of each damped cosine.
        step: h at most; Δt is divided by a whole number.
        lags: of the correlations that are matched, from 0, at least 6.
        potential: U, or the free energy of the data.
        lanes: particles in a simulation.
        samples: points of each, Δt apart.
        batch: sets in one call of `advance`.
        initial: Sobol points for each unknown.
        budget: sets altogether.
        refinements: steps of the refinement; after budget and refinements `advance` does nothing.
        refining_lanes: particles in a simulation of the refinement; best at least as many as the data have.
        search: the built-in process; BoTorch (extra `bo`); or, for six unknowns and more, the evolution
            strategy with adapted covariance (extra `cma`).
        seed: of the points and the noise.

    Raises:
        ValueError: if a range is empty or not positive, or there are too few samples for the lags.
    """

    low: Tensor
    high: Tensor
    theta: Tensor
    losses: Tensor
    count: Tensor
    estimates: Tensor
    information: Tensor
    distances: Tensor
    refined: Tensor
    found: Tensor
    integrals: Tensor
    verdict: Tensor
    target: Tensor
    matched: Tensor

    def __init__(
        self,
        dt: float,
        kT: float,
        mass: Range,
        gamma: Sequence[Range],
        tau: Sequence[Range],
        *,
        cosines: Sequence[tuple[Range, Range, Range]] = (),
        step: float,
        lags: int,
        potential: Potential | Literal["free_energy"] = "free_energy",
        lanes: int = 256,
        samples: int = 400,
        batch: int = 8,
        initial: int = 5,
        budget: int = 80,
        refinements: int = 0,
        refining_lanes: int = 2048,
        search: Search = "gaussian_process",
        seed: int = 0,
    ) -> None:
        super().__init__()
        waves = [r for column in zip(*cosines, strict=True) for r in column]  # all a, then all σ, then all ω
        ranges = [tuple(r) for r in (mass, *gamma, *tau, *waves)]
        _check(ranges, len(gamma), len(tau), dt, kT, step, lags, samples)
        self.dt, self.kT, self.potential, self.terms = dt, kT, potential, len(gamma)
        self.step = step
        self.lags, self.lanes, self.samples, self.batch = lags, lanes, samples, batch
        self.initial, self.budget, self.search, self.seed = initial * len(ranges), budget, search, seed
        self.refinements, self.refining_lanes = refinements, refining_lanes
        low, high = torch.tensor(ranges, dtype=torch.float64).log().unbind(1)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        p = len(ranges)
        shapes = {
            "theta": (budget, p),
            "losses": (budget,),
            "estimates": (refinements, STARTS, p),
            "information": (refinements, STARTS, p, p),
            "distances": (refinements, STARTS, 2),
            "found": (3, p),
            "integrals": (3, 2),
            "verdict": (2,),
            "target": (3, lags),
            "matched": (3, lags),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.full(shape, torch.nan, dtype=torch.float64))
        for name in ("count", "refined"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self._repeating: Repeating | None = None
        self._direct: dict[str, float] = {}
        self._fitted: Surrogate | None = None
        self._fitted_to = 0  # sets
        self._open: Tensor | None = None  # sets that the search has not excluded, the best one first

    @property
    def incumbent(self) -> Incumbent:
        """What is best so far; NaN before the first surrogate."""
        loss, excess = self.verdict.tolist()
        best, low, high = self.found.unbind()
        return Incumbent(best, low, high, self.integrals, self.terms, loss, excess)

    @property
    def kernel(self) -> ExponentialKernel:
        """Γ of the incumbent, times rising."""
        return self.incumbent.kernel

    @property
    def particle(self) -> Particle:
        """The incumbent, to be simulated or saved.

        Raises:
            ValueError: before anything has been found.
        """
        if self._repeating is None or bool(self.found.isnan().any()):
            raise ValueError(f"nothing has been found after {int(self.count)} sets: advance further")
        return Particle(self.kernel, self._repeating.potential, self.found[0, 0], self.kT)

    def advance(self, batch: Tensor | tuple[Tensor, ...]) -> dict[str, float]:
        """Evaluate a batch of parameter sets, or take a step of the refinement; scalars of the incumbent."""
        x = positions_of(batch)
        world = self._prepare(x)
        done = int(self.count)
        if done < self.budget:
            unit = self._proposals(done, min(self.batch, self.budget - done))
            theta = self._logarithms(unit)
            found = world.correlations(theta, self.lags, self.lanes, self.seed, common=True)
            losses = mismatch(found, self.target)
            self.theta[done : done + len(theta)], self.losses[done : done + len(theta)] = theta, losses
            self.count += len(theta)
            if int(self.count) >= min(self.initial, self.budget):
                self._conclude(world)
        elif int(self.refined) < self.refinements:
            self._refine(x, world)
        return self._scalars()

    def figures(self) -> dict[str, Figure]:
        """What TensorBoard shows: the correlations of the data and of the incumbent."""
        from observatory.physics.gle.memory_figures import draw_matched

        return {"matched_correlations": draw_matched(self.dt, self.target.cpu(), self.matched.cpu())}

    def _prepare(self, x: Tensor) -> Repeating:
        if self._repeating is None:
            if x.shape[-1] <= self.lags:
                raise ValueError(
                    f"trajectories of {x.shape[-1]} points have no {self.lags} lags: ask for fewer"
                )
            U = free_energy(x, self.kT) if self.potential == "free_energy" else self.potential
            self._repeating = Repeating(U, self.terms, self.kT, self.dt, self.step, self.samples)
            self.target.copy_(matched_correlations(x, self.dt, U.gradient, self.lags))
            self._direct = self._inverted()
        return self._repeating

    def _inverted(self) -> dict[str, float]:
        """What direct inversion of the same correlations says, to be compared with."""
        vv, _, xf = self.target
        G, _ = kernel_of_correlations(vv, xf, self.dt, smooth=True)
        t = self.dt * torch.arange(self.lags, dtype=torch.float64)
        found = {"friction": float(G[-max(1, self.lags // 10) :].mean()), "mass": self.kT / float(vv[0])}
        return found | {"memory_time": float(fit_exponentials(t, G.cpu(), 1).kernel.memory_time())}

    def _proposals(self, done: int, count: int) -> np.ndarray:
        p = self.theta.shape[1]
        if done < self.initial:
            return sobol(done + count, p, self.seed)[done:]
        if self.search == "cma":
            unit = (self.theta[:done] - self.low) / (self.high - self.low)
            return propose_with_cma(
                unit.cpu().numpy(), self._log_losses().numpy(), self.initial, count, self.seed
            )
        surrogate = self._surrogate()
        if self.search == "botorch":
            values = np.asarray(self._log_losses())
            return propose_with_botorch(surrogate.x, values, count, self.seed + done)
        return propose(surrogate, count, self.seed + done)

    def _log_losses(self) -> Tensor:
        """ln L, with the worst finite value for simulations that flew apart.

        Raises:
            ValueError: if all of them did.
        """
        values = (self.losses[: int(self.count)] + SMALLEST).log().cpu()
        if not bool(values.isfinite().any()):
            raise ValueError(
                f"all {len(values)} simulations flew apart with a step of at most {self.step:g}: give a "
                "smaller step, or search heavier masses"
            )
        return values.nan_to_num(nan=torch.inf).clamp_max(values[values.isfinite()].max())

    def _surrogate(self) -> Surrogate:
        """Of the best sets so far; the conclusion of one call serves the proposals of the next."""
        if self._fitted is None or self._fitted_to != int(self.count):
            values = self._log_losses()
            best = values.argsort()[:MOST].sort().values
            unit = (self.theta[: int(self.count)] - self.low) / (self.high - self.low)
            self._fitted = fit_surrogate(unit.cpu()[best].numpy(), values[best].numpy())
            self._fitted_to = int(self.count)
        return self._fitted

    def _conclude(self, world: Repeating) -> None:
        """The minimiser, simulations there, and the sets that the data do not exclude: their loss,
        as far as the surrogate knows it, does not exceed the largest of the repeats.
        """
        surrogate = self._surrogate()
        best = minimiser(surrogate, self.seed)
        scatter = self._judge(self._logarithms(best), world)
        pool = np.concatenate([best[None], candidates(surrogate, self.seed)])
        mean, spread = surrogate.predict(pool)
        self._open = self._logarithms(pool[mean - spread <= mean[0] + scatter])
        self._keep(self._open[0], self._open[None])

    def _judge(self, theta: Tensor, world: Repeating) -> float:
        """Repeated simulations at a set (p,); ln of the largest loss over their mean."""
        seed = self.seed + 1 + int(self.count) + int(self.refined)
        repeats = world.correlations(theta.repeat(REPEATS, 1), self.lags, self.lanes, seed, common=False)
        to_data = mismatch(repeats, self.target)
        between = mismatch(repeats[:, None], repeats).sum(1) / (REPEATS - 1)  # of each to the others
        # NaN where a simulation flew apart, its step being too long for the set: nothing explains the data
        excess = (to_data.mean() / between.max()).log().nan_to_num(nan=torch.inf)
        self.verdict.copy_(torch.stack([to_data.mean(), excess]))
        self.matched.copy_(repeats.nanmean(0))
        return float((to_data.max() / to_data.mean()).log().nan_to_num(nan=0.0))

    def _keep(self, best: Tensor, possible: Tensor) -> None:
        """The best set (p,), and groups of sets that are possible (G, S, p), whose ranges are joined."""
        level = possible.new_tensor([0.025, 0.975] if int(self.refined) else [0.0, 1.0])

        def joined(values: Tensor) -> Tensor:  # (G, S, q) -> (2, q)
            low, high = values.quantile(level, dim=1)
            return torch.stack([low.amin(0), high.amax(0)])

        self.found.copy_(torch.cat([best[None], joined(possible)]).exp())
        each = integrals_of(possible.flatten(0, 1), self.terms).unflatten(0, possible.shape[:2])
        self.integrals.copy_(torch.cat([integrals_of(best[None], self.terms), joined(each)]))

    def _refine(self, x: Tensor, world: Repeating) -> None:
        """One step from each start on weighted moments; after the last, their means and errors."""
        k, lags = int(self.refined), chosen_lags(self.lags, x.device)
        seed = self.seed + 2 + self.budget + k
        target = moments(x, world.potential, lags).mean(0)
        centres = self.estimates[k - 1] if k else self._contenders(world, lags, target, seed)
        prior = (self.low + self.high) / 2, (self.high - self.low) / 2
        for s, centre in enumerate(centres[centres.isfinite().all(1)]):
            spread = torch.full_like(centre, SPREAD[1])
            if k:
                known = torch.linalg.inv(self.information[k - 1, s] + torch.diag(prior[1] ** -2))
                spread = (2 * known.diagonal().sqrt()).clamp(*SPREAD)
            sets = torch.cat([centre[None], centre + spread.diag(), centre - spread.diag()])
            found = world.moments(sets, lags, self.refining_lanes, seed)
            step = refine(centre, found, target, spread, x.numel() / self.samples, prior)
            self.estimates[k, s] = torch.minimum(torch.maximum(step.estimate, self.low), self.high)
            self.information[k, s] = step.information
            self.distances[k, s] = self.low.new_tensor([step.distance, step.freedom])
        self.refined += 1
        if int(self.refined) == self.refinements:
            self._settle(world, x.numel() / self.samples, prior[1])

    def _contenders(self, world: Repeating, lags: Tensor, target: Tensor, seed: int) -> Tensor:
        """Of the sets that the search has left open, and of its best, the nearest ones of unlike masses."""
        if self._open is None:
            self._conclude(world)
        assert self._open is not None
        best = self.losses[: int(self.count)].nan_to_num(torch.inf).argsort()[:CONTENDERS]
        some = self._open[:: max(1, len(self._open) // CONTENDERS)][:CONTENDERS]
        some = torch.cat([some, self.theta[best]])
        distance = distances(world.moments(some, lags, self.refining_lanes, seed), target)
        unlike = apart(some[:, 0], distance, self.high[0] - self.low[0], STARTS)
        starts = torch.full((STARTS, some.shape[1]), torch.nan).to(some)
        starts[: len(unlike)] = some[unlike]
        return starts

    def _settle(self, world: Repeating, worth: float, wide: Tensor) -> None:
        """The nearest start's end, and a normal distribution for each that is as near, within the ranges."""
        half = self.refinements // 2
        simulated = self.refining_lanes * (self.refinements - half)
        ends = self.estimates[half:].mean(0)
        distance = self.distances[-1, :, 0].nan_to_num(torch.inf)
        near = (distance <= distance.min() + AS_NEAR * len(wide)) & ends.isfinite().all(1)
        excess = (distance / self.distances[-1, :, 1]).clamp_min(1)  # what has not closed in knows less
        information = self.information[half:].mean(0) / (excess * (1 + worth / simulated))[:, None, None]
        information = information[near]
        covariance = torch.linalg.inv(information + torch.diag(wide**-2))
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.randn(DRAWS, len(wide), generator=generator, dtype=torch.float64).to(wide)
        possible = ends[near, None] + draws @ torch.linalg.cholesky(covariance).mT
        best = ends[distance.argmin()]
        self._judge(best, world)
        self._keep(best, torch.minimum(torch.maximum(possible, self.low), self.high))

    def _logarithms(self, unit: np.ndarray) -> Tensor:
        """Of places in the unit cube, (..., p)."""
        return self.low + torch.from_numpy(unit).to(self.low) * (self.high - self.low)

    def _scalars(self) -> dict[str, float]:
        done = int(self.count)
        direct = {f"direct_{name}": value for name, value in self._direct.items()}
        scalars = direct | {
            "evaluations": float(done),
            "best_loss": float(self.losses[:done].nan_to_num(torch.inf).min()),
        }
        if bool(self.found.isnan().any()):
            return scalars
        if int(self.refined):
            distance, freedom = self.distances[int(self.refined) - 1].unbind(-1)
            scalars["misfit"] = float((distance / freedom).nan_to_num(torch.inf).min())
        return scalars | self.incumbent.scalars()


def _check(
    ranges: Sequence[tuple[float, ...]], frictions: int, times: int, dt: float, kT: float, step: float,
    lags: int, samples: int,
) -> None:  # fmt: skip
    for one in ranges:
        if len(one) != 2 or not 0 < one[0] < one[1]:
            raise ValueError(f"a range is searched from a positive number to a larger one, got {one}")
    if frictions != times or len(ranges) < 3:
        raise ValueError(f"every friction needs its time: got {frictions} ranges of γ and {times} of τ")
    if min(dt, kT, step) <= 0 or step > dt * (1 + 1e-9):
        raise ValueError(f"dt, kT and step are positive and step ≤ dt, got {dt:g}, {kT:g} and {step:g}")
    if not 6 <= lags < samples:
        raise ValueError(f"at least 6 lags and more samples than lags are needed, got {lags} and {samples}")

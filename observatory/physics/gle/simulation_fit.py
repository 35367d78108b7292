"""A kernel whose simulated correlations are those of data at any time step: Gaussian-process optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from observatory.physics.gle.direct_fit import fit_exponentials
from observatory.physics.gle.estimators import as_trajectories, positions_of
from observatory.physics.gle.incumbent import Incumbent, integrals_of
from observatory.physics.gle.inversion import kernel_of_correlations
from observatory.physics.gle.kernels import ExponentialKernel
from observatory.physics.gle.matching import matched_correlations, mismatch
from observatory.physics.gle.moment_fit import MomentFit
from observatory.physics.gle.parameter_search import ParameterSearch, Search
from observatory.physics.gle.particle import Particle
from observatory.physics.gle.position_fit import PositionFit
from observatory.physics.gle.potentials import Potential, free_energy
from observatory.physics.gle.repeating import Repeating

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPEATS = 8  # independent simulations at the optimum: the noise of the loss
CONTENDERS = 12  # sets of those not excluded, and of the best, among which the refinement starts
Refining = Literal["moments", "likelihood"]
Range = tuple[float, float]


class SimulationFit(nn.Module):
    """Mass, frictions and times of Γ = Σ(γᵢ/τᵢ)e^{-t/τᵢ} + cosines by simulation, for any U and time step.

    Each set of parameters is simulated with a step h ≪ Δt, thinned to Δt, and put through the estimators of
    the data; the loss is the mean squared mismatch of C_vv, C_xx and C_xU', each over its value at 0. Its
    logarithm is modelled by a Gaussian process on the logarithms of the parameters; `advance` evaluates a
    batch of sets, first Sobol points, then those of largest expected improvement. All sets hear the same
    random numbers. Other than direct inversion this holds for Δt above the memory time, up to the slowest
    time in the data (Tepper, Dalton, Netz, J. Chem. Theory Comput. 20, 3061 (2024), arXiv:2401.09249).

    A loss in which all lags weigh alike leaves the memory time open where the data do not. With
    `refinements`, once the budget is spent, each further call takes a step from each of up to four sets of
    unlike masses that the search has found best or left open. Steps of Gauss and Newton go to moments that
    are weighted by their inverse covariance (`observatory.physics.gle.moments`); the mean of the later half
    is the result. Above ten memory times such moments no longer tell the sets apart that positions do:
    "likelihood" climbs that of the positions themselves, for one exponential and Δt at which the motion
    within a well has decayed; no simulation enters this refinement (`observatory.physics.gle.position_fit`).
    Ranges are 95 % of a normal distribution, on moments widened by √(χ²/ν) where that exceeds 1, and joined
    over all starts that end as near to the data.

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
        refining: on moments of simulations, or on the likelihood of the positions.
        refining_lanes: particles in a simulation of moments; best at least as many as the data have.
        search: the built-in process; BoTorch (extra `bo`); or, for six unknowns and more, the evolution
            strategy with adapted covariance (extra `cma`).
        seed: of the points and the noise.

    Raises:
        ValueError: if a range is empty or not positive, there are too few samples for the lags, the
            likelihood is asked for with other than one exponential, or `refining` is neither.
    """

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
        refining: Refining = "moments",
        refining_lanes: int = 2048,
        search: Search = "gaussian_process",
        seed: int = 0,
    ) -> None:
        super().__init__()
        waves = [r for column in zip(*cosines, strict=True) for r in column]  # all a, then all σ, then all ω
        ranges = [tuple(r) for r in (mass, *gamma, *tau, *waves)]
        _check(ranges, len(gamma), len(tau), dt, kT, step, lags, samples)
        self.dt, self.kT, self.potential, self.terms = dt, kT, potential, len(gamma)
        self.step, self.lags, self.lanes, self.samples, self.seed = step, lags, lanes, samples, seed
        low, high = torch.tensor(ranges, dtype=torch.float64).log().unbind(1)
        self.search = ParameterSearch(
            low, high, budget=budget, batch=batch, initial=initial * len(ranges), kind=search, seed=seed
        )
        if refining not in get_args(Refining):
            raise ValueError(f"refining must be one of {', '.join(get_args(Refining))}, got {refining!r}")
        if refining == "likelihood" and (len(gamma), len(cosines)) != (1, 0):
            raise ValueError("the likelihood of positions is known for one exponential: refine on moments")
        after = seed + 2 + budget
        self.refinement: MomentFit | PositionFit = (
            PositionFit(low, high, steps=refinements, seed=after)
            if refining == "likelihood"
            else MomentFit(low, high, steps=refinements, lags=lags, lanes=refining_lanes, seed=after)
        )
        p = len(ranges)
        shapes = {
            "found": (3, p),
            "integrals": (3, 2),
            "verdict": (2,),
            "target": (3, lags),
            "matched": (3, lags),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.full(shape, torch.nan, dtype=torch.float64))
        self._repeating: Repeating | None = None
        self._direct: dict[str, float] = {}
        self._positions = 0
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
            raise ValueError(f"nothing has been found after {int(self.search.count)} sets: advance further")
        return Particle(self.kernel, self._repeating.potential, self.found[0, 0], self.kT)

    def advance(self, batch: Tensor | tuple[Tensor, ...]) -> dict[str, float]:
        """Evaluate a batch of parameter sets, or take a step of the refinement; scalars of the incumbent."""
        x = positions_of(batch)
        world = self._prepare(x)
        if not self.search.done:
            theta = self.search.propose()
            found = world.correlations(theta, self.lags, self.lanes, self.seed, common=True)
            self.search.record(theta, mismatch(found, self.target))
            if self.search.informed:
                self._conclude(world)
        elif not self.refinement.done:
            self._refine(x, world)
        return self._scalars()

    def figures(self) -> dict[str, Figure]:
        """What TensorBoard shows: the correlations of the data and of the incumbent."""
        from observatory.physics.gle.memory_figures import draw_matched

        return {"matched_correlations": draw_matched(self.dt, self.target.cpu(), self.matched.cpu())}

    def _prepare(self, x: Tensor) -> Repeating:
        if self._repeating is None:
            as_trajectories(x)  # or NaN would be searched for, and be a place of the likelihood's grid
            if x.shape[-1] <= self.lags:
                raise ValueError(
                    f"trajectories of {x.shape[-1]} points have no {self.lags} lags: ask for fewer"
                )
            U = free_energy(x, self.kT) if self.potential == "free_energy" else self.potential
            self._repeating = Repeating(U, self.terms, self.kT, self.dt, self.step, self.samples)
            self.target.copy_(matched_correlations(x, self.dt, U.gradient, self.lags))
            self._direct = self._inverted()
            self._positions = x.numel()
        return self._repeating

    def _inverted(self) -> dict[str, float]:
        """What direct inversion of the same correlations says, to be compared with."""
        vv, _, xf = self.target
        G, _ = kernel_of_correlations(vv, xf, self.dt, smooth=True)
        t = self.dt * torch.arange(self.lags, dtype=torch.float64)
        found = {"friction": float(G[-max(1, self.lags // 10) :].mean()), "mass": self.kT / float(vv[0])}
        return found | {"memory_time": float(fit_exponentials(t, G.cpu(), 1).kernel.memory_time())}

    def _conclude(self, world: Repeating) -> None:
        """The minimiser, simulations there, and the sets that the data do not exclude: their loss,
        as far as the surrogate knows it, does not exceed the largest of the repeats.
        """
        scatter = self._judge(self.search.best(), world)
        self._open = self.search.left_open(scatter)
        self._keep(self._open[0], self._open[None])

    def _refine(self, x: Tensor, world: Repeating) -> None:
        """One step of each start; after the last, their means and errors."""
        if self._open is None:  # resumed from a checkpoint
            self._conclude(world)
        assert self._open is not None
        some = self._open[:: max(1, len(self._open) // CONTENDERS)][:CONTENDERS]
        self.refinement.advance(x, world, torch.cat([some, self.search.evaluated(CONTENDERS)]))
        if self.refinement.done:
            best, possible = self.refinement.settled()
            self._judge(best, world)
            self._keep(best, possible)

    def _judge(self, theta: Tensor, world: Repeating) -> float:
        """Repeated simulations at a set (p,); ln of the largest loss over their mean."""
        seed = self.seed + 1 + int(self.search.count) + int(self.refinement.taken)
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
        level = possible.new_tensor([0.025, 0.975] if int(self.refinement.taken) else [0.0, 1.0])

        def joined(values: Tensor) -> Tensor:  # (G, S, q) -> (2, q)
            low, high = values.quantile(level, dim=1)
            return torch.stack([low.amin(0), high.amax(0)])

        self.found.copy_(torch.cat([best[None], joined(possible)]).exp())
        each = integrals_of(possible.flatten(0, 1), self.terms).unflatten(0, possible.shape[:2])
        self.integrals.copy_(torch.cat([integrals_of(best[None], self.terms), joined(each)]))

    def _scalars(self) -> dict[str, float]:
        direct = {f"direct_{name}": value for name, value in self._direct.items()}
        scalars = direct | {
            "positions": float(self._positions),
            "evaluations": float(self.search.count),
            "best_loss": self.search.smallest(),
        }
        if bool(self.found.isnan().any()):
            return scalars
        told = self.refinement.scalars() if int(self.refinement.taken) else {}
        return scalars | told | self.incumbent.scalars()


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

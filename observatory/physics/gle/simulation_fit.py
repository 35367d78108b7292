"""A kernel whose simulated correlations are those of data at any time step: Gaussian-process optimisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    sobol,
)
from observatory.physics.gle.direct_fit import fit_exponentials
from observatory.physics.gle.estimators import positions_of
from observatory.physics.gle.inversion import kernel_of_correlations
from observatory.physics.gle.kernels import ExponentialKernel, exponential_kernel
from observatory.physics.gle.matching import matched_correlations, mismatch
from observatory.physics.gle.particle import Particle
from observatory.physics.gle.potentials import Potential, free_energy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPEATS = 8  # independent simulations at the optimum: the noise of the loss
TOLD_APART = math.log(2)  # excess above which the best simulation is not the equation of the data
SMALLEST = 1e-12  # added to a loss before its logarithm is taken
Range = tuple[float, float]


@dataclass(frozen=True)
class Incumbent:
    """What is best so far; parameters are (m, γᵢ, τᵢ)."""

    parameters: Tensor  # minimiser of the surrogate's mean, (1 + 2n,)
    low: Tensor  # range that the data do not exclude, (1 + 2n,)
    high: Tensor
    loss: float  # mean over independent simulations
    excess: float  # ln of the loss over the largest loss of one simulation against the others

    @property
    def explains(self) -> bool:
        """Whether the loss is at most twice that between two simulations; else nothing is excluded by it."""
        return self.excess <= TOLD_APART

    @property
    def mass_identified(self) -> bool:
        """Whether data that are explained leave masses that span less than a factor of two."""
        return self.explains and bool(self.high[0] < 2 * self.low[0])


class SimulationFit(nn.Module):
    """Mass, frictions and times of Γ = Σ(γᵢ/τᵢ)e^{-t/τᵢ} by simulating the equation, for any U and time step.

    Each set of parameters is simulated with a step h ≪ Δt, thinned to Δt, and put through the estimators of
    the data; the loss is the mean squared mismatch of C_vv, C_xx and C_xU', each over its value at 0. Its
    logarithm is modelled by a Gaussian process on ln(m, γᵢ, τᵢ); `advance` evaluates a batch of sets, first
    Sobol points, then those of largest expected improvement. All sets hear the same random numbers. Other
    than direct inversion this holds for Δt above the memory time, up to the slowest time in the data (Tepper,
    Dalton, Netz, J. Chem. Theory Comput. 20, 3061 (2024), arXiv:2401.09249).

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
        step: h at most; Δt is divided by a whole number.
        lags: of the correlations that are matched, from 0, at least 6.
        potential: U, or the free energy of the data.
        lanes: particles in a simulation.
        samples: points of each, Δt apart.
        batch: sets in one call of `advance`.
        initial: Sobol points for each unknown.
        budget: sets altogether; after them `advance` evaluates nothing.
        search: the built-in process, or BoTorch (extra `bo`).
        seed: of the points and the noise.

    Raises:
        ValueError: if a range is empty or not positive, or there are too few samples for the lags.
    """

    low: Tensor
    high: Tensor
    theta: Tensor
    losses: Tensor
    count: Tensor
    found: Tensor
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
        step: float,
        lags: int,
        potential: Potential | Literal["free_energy"] = "free_energy",
        lanes: int = 256,
        samples: int = 400,
        batch: int = 8,
        initial: int = 5,
        budget: int = 80,
        search: Literal["gaussian_process", "botorch"] = "gaussian_process",
        seed: int = 0,
    ) -> None:
        super().__init__()
        ranges = [tuple(r) for r in (mass, *gamma, *tau)]
        _check(ranges, len(gamma), len(tau), dt, kT, step, lags, samples)
        self.dt, self.kT, self.potential = dt, kT, potential
        self.step = step
        self.lags, self.lanes, self.samples, self.batch = lags, lanes, samples, batch
        self.initial, self.budget, self.search, self.seed = initial * len(ranges), budget, search, seed
        low, high = torch.tensor(ranges, dtype=torch.float64).log().unbind(1)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        p = len(ranges)
        self.register_buffer("theta", torch.full((budget, p), torch.nan, dtype=torch.float64))
        self.register_buffer("losses", torch.full((budget,), torch.nan, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("found", torch.full((3, p), torch.nan, dtype=torch.float64))
        self.register_buffer("verdict", torch.full((2,), torch.nan, dtype=torch.float64))
        self.register_buffer("target", torch.full((3, lags), torch.nan, dtype=torch.float64))
        self.register_buffer("matched", torch.full((3, lags), torch.nan, dtype=torch.float64))
        self._U: Potential | None = None
        self._direct: dict[str, float] = {}
        self._fitted: Surrogate | None = None

    @property
    def incumbent(self) -> Incumbent:
        """What is best so far; NaN before the first surrogate."""
        loss, excess = self.verdict.tolist()
        best, low, high = self.found.unbind()
        return Incumbent(best, low, high, loss, excess)

    @property
    def kernel(self) -> ExponentialKernel:
        """Γ of the incumbent, times rising."""
        gamma, tau = self.found[0, 1:].chunk(2)
        order = tau.argsort()
        return exponential_kernel(gamma[order], tau[order])

    @property
    def particle(self) -> Particle:
        """The incumbent, to be simulated or saved.

        Raises:
            ValueError: before anything has been found.
        """
        if self._U is None or bool(self.found.isnan().any()):
            raise ValueError(f"nothing has been found after {int(self.count)} sets: advance further")
        return Particle(self.kernel, self._U, self.found[0, 0], self.kT)

    def advance(self, batch: Tensor | tuple[Tensor, ...]) -> dict[str, float]:
        """Evaluate one batch of parameter sets; scalars of the incumbent."""
        x = positions_of(batch)
        U = self._prepare(x)
        done = int(self.count)
        if done < self.budget:
            unit = self._proposals(done, min(self.batch, self.budget - done))
            theta = self.low + torch.from_numpy(unit).to(self.low) * (self.high - self.low)
            losses = mismatch(self._correlations(theta, U, common=True), self.target)
            self.theta[done : done + len(theta)], self.losses[done : done + len(theta)] = theta, losses
            self.count += len(theta)
            if int(self.count) >= min(self.initial, self.budget):
                self._conclude(U)
        return self._scalars()

    def figures(self) -> dict[str, Figure]:
        """What TensorBoard shows: the correlations of the data and of the incumbent."""
        from observatory.physics.gle.memory_figures import draw_matched

        return {"matched_correlations": draw_matched(self.dt, self.target.cpu(), self.matched.cpu())}

    def _prepare(self, x: Tensor) -> Potential:
        if self._U is None:
            if x.shape[-1] <= self.lags:
                raise ValueError(
                    f"trajectories of {x.shape[-1]} points have no {self.lags} lags: ask for fewer"
                )
            self._U = free_energy(x, self.kT) if self.potential == "free_energy" else self.potential
            self.target.copy_(matched_correlations(x, self.dt, self._U.gradient, self.lags))
            self._direct = self._inverted()
        return self._U

    def _inverted(self) -> dict[str, float]:
        """What direct inversion of the same correlations says, to be compared with."""
        vv, _, xf = self.target
        G, _ = kernel_of_correlations(vv, xf, self.dt, smooth=True)
        t = self.dt * torch.arange(self.lags, dtype=torch.float64)
        found = {"friction": float(G[-max(1, self.lags // 10) :].mean()), "mass": self.kT / float(vv[0])}
        return found | {"memory_time": float(fit_exponentials(t, G.cpu(), 1).kernel.memory_time())}

    def _correlations(self, theta: Tensor, U: Potential, *, common: bool) -> Tensor:
        """Of ln(m, γᵢ, τᵢ) (S, 1 + 2n): (S, 3, lags)."""
        gamma, tau = theta[:, 1:].exp().chunk(2, -1)
        generator = torch.Generator(theta.device).manual_seed(
            self.seed + (0 if common else 1 + int(self.count))
        )
        particles = Particle(ExponentialKernel.of(gamma, tau), U, theta[:, 0].exp(), self.kT)
        x = particles.observed(
            self.dt,
            step=self.step,
            samples=self.samples,
            lanes=self.lanes,
            dtype=torch.float32,
            generator=generator,
            common_noise=common,
        )
        return matched_correlations(x, self.dt, U.gradient, self.lags)

    def _proposals(self, done: int, count: int) -> np.ndarray:
        p = self.theta.shape[1]
        if done < self.initial:
            return sobol(done + count, p, self.seed)[done:]
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
        """Of everything evaluated so far; the conclusion of one call serves the proposals of the next."""
        if self._fitted is None or len(self._fitted.x) != int(self.count):
            unit = (self.theta[: int(self.count)] - self.low) / (self.high - self.low)
            self._fitted = fit_surrogate(unit.cpu().numpy(), self._log_losses().numpy())
        return self._fitted

    def _conclude(self, U: Potential) -> None:
        """The minimiser, simulations there, and the sets that the data do not exclude: their loss,
        as far as the surrogate knows it, does not exceed the largest of the repeats.
        """
        surrogate = self._surrogate()
        best = minimiser(surrogate, self.seed)
        theta = self.low + torch.from_numpy(best).to(self.low) * (self.high - self.low)
        repeats = self._correlations(theta.repeat(REPEATS, 1), U, common=False)
        to_data = mismatch(repeats, self.target)
        between = mismatch(repeats[:, None], repeats).sum(1) / (REPEATS - 1)  # of each to the others
        # NaN where a simulation flew apart, its step being too long for the set: nothing explains the data
        excess = (to_data.mean() / between.max()).log().nan_to_num(nan=torch.inf)
        scatter = float((to_data.max() / to_data.mean()).log().nan_to_num(nan=0.0))
        pool = np.concatenate([candidates(surrogate, self.seed), best[None]])
        mean, spread = surrogate.predict(pool)
        allowed = pool[mean - spread <= mean[-1] + scatter]
        ends = torch.from_numpy(np.stack([best, allowed.min(0), allowed.max(0)])).to(self.low)
        self.found.copy_((self.low + ends * (self.high - self.low)).exp())
        self.verdict.copy_(torch.stack([to_data.mean(), excess]))
        self.matched.copy_(repeats.nanmean(0))

    def _scalars(self) -> dict[str, float]:
        done = int(self.count)
        direct = {f"direct_{name}": value for name, value in self._direct.items()}
        scalars = direct | {
            "evaluations": float(done),
            "best_loss": float(self.losses[:done].nan_to_num(torch.inf).min()),
        }
        if bool(self.found.isnan().any()):
            return scalars
        best, kernel = self.incumbent, self.kernel
        n = (len(best.parameters) - 1) // 2
        return scalars | {
            "loss": best.loss,
            "excess": best.excess,
            "mass": float(best.parameters[0]),
            "mass_low": float(best.low[0]),
            "mass_high": float(best.high[0]),
            "friction": float(kernel.friction()),
            "friction_low": float(best.low[1 : 1 + n].sum()),
            "friction_high": float(best.high[1 : 1 + n].sum()),
            "memory_time": float(kernel.memory_time()),
            "memory_time_low": float(best.low[1 + n]),
            "memory_time_high": float(best.high[-1]),
        }


def _check(
    ranges: Sequence[tuple[float, ...]], frictions: int, times: int, dt: float, kT: float, step: float,
    lags: int, samples: int,
) -> None:  # fmt: skip
    for one in ranges:
        if len(one) != 2 or not 0 < one[0] < one[1]:
            raise ValueError(f"a range is searched from a positive number to a larger one, got {one}")
    if frictions != times or frictions < 1:
        raise ValueError(f"every friction needs its time: got {frictions} ranges of γ and {times} of τ")
    if min(dt, kT, step) <= 0 or step > dt * (1 + 1e-9):
        raise ValueError(f"dt, kT and step are positive and step ≤ dt, got {dt:g}, {kT:g} and {step:g}")
    if not 6 <= lags < samples:
        raise ValueError(f"at least 6 lags and more samples than lags are needed, got {lags} and {samples}")

"""The minimum of a costly, noisy function of a few variables: a Gaussian process, and where to look next."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

CANDIDATES = 2048  # points of the cube among which the next ones are chosen


@dataclass(frozen=True)
class Surrogate:
    """A Gaussian process with a Matérn-5/2 covariance, a length for each variable, and white noise.

    (Rasmussen, Williams, Gaussian Processes for Machine Learning, 2006, §4.2 and §5.4.)
    """

    process: Any  # sklearn's GaussianProcessRegressor, fitted
    x: np.ndarray  # where the function was evaluated, (n, p), in the unit cube

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the function without noise at x (m, p); both (m,)."""
        mean, spread = self.process.predict(x, return_std=True)
        return mean, np.sqrt(np.maximum(spread**2 - self.noise**2, 1e-12))

    @property
    def noise(self) -> float:
        """Standard deviation of the noise of one evaluation."""
        return math.sqrt(self.process.kernel_.k2.noise_level) * float(self.process._y_train_std)


def fit_surrogate(x: np.ndarray, y: np.ndarray) -> Surrogate:
    """The process of the largest marginal likelihood; not above some 500 points, O(n³).

    Args:
        x: (n, p), in the unit cube.
        y: (n,), finite.

    Raises:
        ValueError: if there are fewer than two points, or a value is not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    if len(y) < 2 or x.shape[0] != len(y) or not np.isfinite(y).all():
        raise ValueError(
            f"a surrogate needs at least two points and finite values, got {len(y)} of {x.shape}"
        )
    lengths = Matern(np.full(x.shape[1], 0.5), (0.02, 20.0), nu=2.5)
    covariance = ConstantKernel(1.0, (1e-2, 1e3)) * lengths + WhiteKernel(1e-2, (1e-6, 1.0))
    process = GaussianProcessRegressor(covariance, normalize_y=True, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # a length at its bound: a variable without effect
        process.fit(x, y)
    return Surrogate(process, x)


def sobol(count: int, dimension: int, seed: int) -> np.ndarray:
    """Scrambled Sobol points, (count, dimension)."""
    from scipy.stats import qmc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # balance needs powers of two; a prefix is as good here
        return qmc.Sobol(dimension, seed=seed).random(count)


def candidates(surrogate: Surrogate, seed: int) -> np.ndarray:
    """Points all over the cube, and clouds of several widths about the best of those evaluated."""
    p = surrogate.x.shape[1]
    best = surrogate.x[surrogate.predict(surrogate.x)[0].argmin()]
    steps = np.random.default_rng(seed).standard_normal((CANDIDATES // 2, p))
    near = best + steps * np.repeat([0.02, 0.08], CANDIDATES // 4)[:, None]
    return np.concatenate([sobol(CANDIDATES, p, seed), near.clip(0, 1), surrogate.x])


def expected_improvement(mean: np.ndarray, spread: np.ndarray, best: float) -> np.ndarray:
    """E[max(0, best - f)] of a normal f."""
    from scipy.stats import norm

    z = (best - mean) / spread
    return spread * (z * norm.cdf(z) + norm.pdf(z))


def propose(surrogate: Surrogate, count: int, seed: int) -> np.ndarray:
    """Points that promise the largest improvement, a batch by local penalisation, (count, p).

    Around a point already chosen the promise shrinks by the probability that the minimum is not within
    (μ_j - min μ)/L of it, L being the steepest slope of μ. (González, Dai, Hennig, Lawrence, AISTATS 2016.)
    """
    from scipy.special import erfc

    pool = candidates(surrogate, seed)
    mean, spread = surrogate.predict(pool)
    best = float(surrogate.predict(surrogate.x)[0].min())
    promise = np.log(np.maximum(expected_improvement(mean, spread, best), 1e-300))
    slope = max(_steepest(surrogate, pool[:256]), 1e-9)
    chosen = []
    for _ in range(count):
        k = int(promise.argmax())
        chosen.append(pool[k])
        distance = np.linalg.norm(pool - pool[k], axis=1)
        z = (slope * distance - (mean[k] - best)) / (math.sqrt(2) * spread[k])
        promise = promise + np.log(np.maximum(erfc(-z) / 2, 1e-300))
        promise[k] = -np.inf
    return np.stack(chosen)


def _steepest(surrogate: Surrogate, x: np.ndarray, h: float = 1e-3) -> float:
    """The largest slope of the mean among x, by differences."""
    n, p = x.shape
    shifted = (x[None] + h * np.eye(p)[:, None]).reshape(-1, p)
    moved = surrogate.predict(np.concatenate([x, shifted]))[0]
    slopes = (moved[n:].reshape(p, n) - moved[:n]) / h
    return float(np.linalg.norm(slopes, axis=0).max())


def minimiser(surrogate: Surrogate, seed: int) -> np.ndarray:
    """Where the mean is lowest, (p,): not the best value observed, which noise has made too low."""
    from scipy.optimize import minimize

    pool = candidates(surrogate, seed)
    start = pool[surrogate.predict(pool)[0].argmin()]
    found = minimize(
        lambda x: float(surrogate.predict(x[None])[0][0]), start, bounds=[(0.0, 1.0)] * len(start)
    )
    return found.x if found.fun <= float(surrogate.predict(start[None])[0][0]) else start


def propose_with_botorch(x: np.ndarray, y: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Points by BoTorch's noisy expected improvement, optimised jointly for the batch, (count, p).

    (Balandat et al., NeurIPS 2020, arXiv:1910.06403.)

    Raises:
        ImportError: without the extra `bo`.
    """
    try:
        import torch
        from botorch.acquisition import qLogNoisyExpectedImprovement
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.optim import optimize_acqf
        from gpytorch.mlls import ExactMarginalLogLikelihood
        from linear_operator.utils.warnings import NumericalWarning
    except ImportError as error:
        raise ImportError(
            "search='botorch' needs BoTorch: pip install 'training-observatory[bo]', "
            "or use search='gaussian_process'"
        ) from error
    inputs = torch.from_numpy(x)
    values = -torch.from_numpy(y)[:, None]
    values = (values - values.mean()) / values.std()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)  # points that lie close need jitter, which is added
        torch.manual_seed(seed)
        model = SingleTaskGP(inputs, values, outcome_transform=None)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        promise = qLogNoisyExpectedImprovement(model, X_baseline=inputs)
        bounds = torch.stack([torch.zeros_like(inputs[0]), torch.ones_like(inputs[0])])
        chosen, _ = optimize_acqf(promise, bounds, q=count, num_restarts=4, raw_samples=128)
    return np.asarray(chosen.detach())


def propose_with_cma(x: np.ndarray, y: np.ndarray, initial: int, count: int, seed: int) -> np.ndarray:
    """The next generation of an evolution strategy that adapts its covariance, (count, p).

    It starts from the best of the `initial` points and is told all later ones, which it has proposed itself,
    generation by generation: it has no state beside what was evaluated. (Hansen, arXiv:1604.00772.)

    Raises:
        ImportError: without the extra `cma`.
    """
    try:
        import cma
    except ImportError as error:
        raise ImportError(
            "search='cma' needs pycma: pip install 'training-observatory[cma]', "
            "or use search='gaussian_process'"
        ) from error
    random = np.random.default_rng(seed)
    options = {"bounds": [0, 1], "popsize": count, "verbose": -9, "seed": np.nan}
    options["randn"] = lambda *shape: random.standard_normal(shape)
    strategy = cma.CMAEvolutionStrategy(x[y[:initial].argmin()], 0.2, options)
    for start in range(initial, len(x) - count + 1, count):
        strategy.ask()
        strategy.tell(list(x[start : start + count]), list(y[start : start + count]))
    return np.stack(strategy.ask()).clip(0, 1)

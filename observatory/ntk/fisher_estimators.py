"""Estimators of the trace of the Fisher information: output directions, and the sums kept over the examples.

With M_i = L_iᵀ Θ_ii L_i, H_i = L_i L_iᵀ and n_iy = ‖∇ ln p(y|x_i)‖², all unbiased for Tr F = (1/N) Σ Tr M_i:

    exact        Σ_a M_i,aa: a backward pass for each output (a softmax: but one); no variance
    sampled      n_iy with y ~ p(y|x_i); variance (1/N²) Σ_i Var_y n_iy
    rademacher   εᵀ M_i ε with random signs ε; variance (2/N²) Σ_i (‖M_i‖² - Σ_a M_i,aa²)
    summed       ‖Σ_i J_iᵀ L_i ε_i‖²/N: an ordinary backward pass; the examples' cross terms are noise
    hutchinson   zᵀFz with random signs z for the parameters; variance 2 (‖F‖² - Σ_a F_aa²)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from observatory.looking.model import ModelFunction
from observatory.looking.ranks import all_reduce_sum
from observatory.ntk.fisher_likelihoods import OutputLikelihood
from observatory.numerics.curvature import directional_derivatives

Estimator = Literal["auto", "exact", "sampled", "rademacher", "summed", "hutchinson"]
ESTIMATORS = ("auto", "exact", "sampled", "rademacher", "summed", "hutchinson")
OF_WHOLE_BATCHES = ("summed", "hutchinson")
EXACT_UP_TO = 16  # outputs, for "auto"


@dataclass(frozen=True)
class Estimate:
    """An estimate with its two errors; 0-dimensional float64 tensors."""

    value: Tensor
    standard_error: (
        Tensor  # of the estimator, for these very examples: 0 if exact; one draw: see `fisher_trace`
    )
    sampling_error: Tensor  # of the value as a mean over the population that the examples were drawn from
    examples: int  # N


@dataclass(frozen=True)
class FisherTraces:
    """Tr F and its parts by layer, whose sum it is; estimators of whole batches have no parts."""

    whole: Estimate
    layers: dict[str, Estimate]


class FisherDirections:
    """Makes directions v (D, n, *output) from the outputs of some examples, and notes which examples count.

    Args:
        method: "auto", "exact", "sampled", "rademacher", or "empirical": the score of the targets.
        likelihood_of: the likelihood of so many outputs.
        targets: of all examples, or None; v = 0 where they mark padding.
        draws: D, where directions are random.
        generator: of the draws.
    """

    def __init__(
        self,
        method: str,
        likelihood_of: Callable[[int], OutputLikelihood],
        targets: Tensor | None,
        draws: int,
        generator: torch.Generator,
    ) -> None:
        self.method, self.likelihood_of, self.targets = method, likelihood_of, targets
        self.draws, self.generator = draws, generator
        self._counted: list[Tensor] = []

    @property
    def random_draws(self) -> int:
        """D, or 0 where nothing is random."""
        return self.draws if self.method in ("sampled", "rademacher") else 0

    @property
    def counted(self) -> Tensor:
        """Of the examples seen so far, (n,)."""
        return torch.cat(self._counted)

    def __call__(self, f: Tensor, at: slice) -> Tensor:
        outputs = f[0].numel()
        self.likelihood = self.likelihood_of(outputs)
        if self.method == "auto":
            self.method = "exact" if outputs <= EXACT_UP_TO else "sampled"
        y, counted = fitted_targets(self.likelihood, f, self.targets, at)
        self._counted.append(counted.reshape(len(f), -1).any(1))
        if self.method == "empirical":
            assert y is not None  # checked at the door
            return self.likelihood.score(f, y)[None]
        return self._of_the_model(f) * counted

    def _of_the_model(self, f: Tensor) -> Tensor:
        if self.method == "exact":
            return self.likelihood.columns(f)
        if self.method == "rademacher":
            return self.likelihood.root(f, random_signs((self.draws, *f.shape), f, self.generator))
        labels = [self.likelihood.sample(f, self.generator) for _ in range(self.draws)]
        return torch.stack([self.likelihood.score(f, y) for y in labels])


def fitted_targets(
    likelihood: OutputLikelihood, f: Tensor, targets: Tensor | None, at: slice
) -> tuple[Tensor | None, Tensor]:
    """The targets of some examples as the likelihood wants them, and which outputs count."""
    likelihood.check_outputs(f)
    y = None if targets is None else likelihood.fitted(f, targets[at])
    return y, likelihood.counted(f, y)


def random_signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """±1 with equal probability, drawn on the generator's device."""
    bits = torch.randint(2, shape, generator=generator, device=generator.device)
    return (2 * bits - 1).to(like)


class ExampleSums:
    """Of the whole and of each layer: Σ c, Σ c², Σ w and N, c an example's contribution, w its variance.

    These add up over batches and processes.
    """

    def __init__(self) -> None:
        self.draws = 0
        self.layers: tuple[str, ...] = ()
        self.moments: Tensor | None = None  # (1 + layers, 4), float64

    def add(self, norms: dict[str, Tensor], counted: Tensor, draws: int) -> None:
        """Take a batch.

        Args:
            norms: ‖J_iᵀ v_id‖² by layer, (D, n).
            counted: which examples count, (n,).
            draws: D if the directions are draws, whose mean is c; 0 if c is the sum over all directions.
        """
        parts = torch.stack(list(norms.values())).double()
        parts = torch.cat([parts.sum(0, keepdim=True), parts])  # (1 + layers, D, n)
        c = parts.mean(1) if draws else parts.sum(1)
        w = parts.var(1) / draws if draws > 1 else torch.zeros_like(c)
        self.draws = draws
        n = counted.double().sum().expand(len(parts))
        found = torch.stack([c.sum(1), c.square().sum(1), w.sum(1), n], 1)
        self.layers = tuple(norms)
        self.moments = found if self.moments is None else self.moments + found

    def estimates(self, *, mean: bool, over_ranks: bool) -> FisherTraces:
        """From the sums so far, or those of all processes."""
        assert self.moments is not None  # no batch is refused earlier
        total, squares, variance, n = (all_reduce_sum(self.moments) if over_ranks else self.moments).unbind(1)
        scatter = (squares - total.square() / n).clamp_min(0) / (n - 1)
        own = variance.sqrt() if self.draws != 1 else (n * scatter).sqrt()
        scale = 1 / n if mean else torch.ones_like(n)
        value, own, sampling = total * scale, own * scale, (n * scatter).sqrt() * scale
        found = [Estimate(value[k], own[k], sampling[k], int(n[k])) for k in range(len(n))]
        return FisherTraces(found[0], dict(zip(self.layers, found[1:], strict=True)))


class BatchSums:
    """Sums of the estimators that see a batch as a whole: one number for each draw."""

    def __init__(self) -> None:
        self.totals: Tensor | None = None  # (draws + 1,), the last is N

    def add(self, values: Tensor, counted: Tensor) -> None:
        """Take a batch: its contribution to N Tr F in each draw, and which examples count."""
        found = torch.cat([values.double(), counted.double().sum()[None]])
        self.totals = found if self.totals is None else self.totals + found

    def estimates(self, *, mean: bool, over_ranks: bool) -> FisherTraces:
        """From the sums so far, or those of all processes."""
        assert self.totals is not None  # no batch is refused earlier
        totals = all_reduce_sum(self.totals) if over_ranks else self.totals
        values, n = totals[:-1], totals[-1]
        values = values / n if mean else values
        unknown = torch.full_like(n, torch.nan)
        error = values.std() / math.sqrt(len(values)) if len(values) > 1 else unknown
        return FisherTraces(Estimate(values.mean(), error, unknown, int(n)), {})


def whole_batch_values(
    method: str,
    function: ModelFunction,
    x: Any,
    likelihood_of: Callable[[int], OutputLikelihood],
    targets: Tensor | None,
    draws: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """N Tr F of one batch by "summed" or "hutchinson", one value for each draw, and which examples count."""
    theta = {name: p.detach().requires_grad_() for name, p in function.theta.items()}
    with torch.enable_grad():
        outputs = function(x, theta)
    f = outputs.detach()
    likelihood = likelihood_of(f[0].numel())
    _, counted = fitted_targets(likelihood, f, targets, slice(None))
    if method == "hutchinson":
        z = random_signs((draws, sum(p.numel() for p in theta.values())), f, generator)
        at_once = max(1, 2**22 // z.shape[1])  # tangents of 16 MB
        u = directional_derivatives(lambda t: function(x, t), function.theta, z, chunk_size=at_once)
        values = likelihood.information(f, u * counted)
    else:
        directions = likelihood.root(f, random_signs((draws, *f.shape), f, generator)) * counted
        values = torch.stack([_squared_gradient(outputs, list(theta.values()), v) for v in directions])
    return values, counted.reshape(len(f), -1).any(1)


def _squared_gradient(outputs: Tensor, theta: list[Tensor], v: Tensor) -> Tensor:
    """‖Σ_i J_iᵀ v_i‖²."""
    gradients = torch.autograd.grad(outputs, theta, v, retain_graph=True, allow_unused=True)
    return torch.stack([g.square().sum() for g in gradients if g is not None]).sum()

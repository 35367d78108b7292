"""Ensembles of linear networks under SGD that a training loop advances, with the moments of theory.

Every ensemble keeps, for each of its R runs, the sum over time of what fluctuates, so that the scatter of
the runs is the standard error of the ensemble's mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from observatory.solvable.linear_network import (
    TwoLayerEnsemble,
    scalar_gauge_rate,
    stationary_gauge,
    two_layer_variances,
)
from observatory.solvable.online_regression import (
    continuum_covariance,
    finite_set_covariance,
    online_regression,
    stationary_covariance,
)


class _Runs(nn.Module):
    """R runs, and the sums over time of what fluctuates, (R, ...)."""

    sums: Tensor

    def __init__(self, shape: tuple[int, ...], discard: int) -> None:
        super().__init__()
        self.discard = discard
        self.register_buffer("sums", torch.zeros(shape, dtype=torch.float64))

    def keep_theory(self, **values: Tensor) -> None:
        """Keep what theory says of the mean, beside the sums: buffers `theory_NAME`."""
        for name, value in values.items():
            self.register_buffer(f"theory_{name}", value)

    def advance(self, step: int, generator: torch.Generator) -> None:
        """One update of every run, the `step`-th, counted from 0."""
        with torch.no_grad():
            self.update(generator)
            if step >= self.discard:
                self.sums += self.fluctuation()

    def update(self, generator: torch.Generator) -> None:
        raise NotImplementedError

    def fluctuation(self) -> Tensor:
        """What is averaged, (R, ...)."""
        raise NotImplementedError


class OnlineRuns(_Runs):
    """Regression on fresh Gaussian data (see `online_regression`)."""

    learning_rate, batch_size, label_noise = 0.15, 2, 0.5
    curvature: Tensor

    def __init__(
        self, curvature: tuple[float, ...] = (4, 2, 1, 0.5, 0.25), replicas: int = 4000, discard: int = 300
    ) -> None:
        super().__init__((replicas, len(curvature)), discard)
        self.register_buffer("curvature", torch.tensor(curvature, dtype=torch.float64))
        self.delta = nn.Parameter(torch.zeros(replicas, len(curvature), dtype=torch.float64))
        eta, size, noise = self.learning_rate, self.batch_size, self.label_noise
        exact = online_regression(
            self.curvature, learning_rate=eta, batch_size=size, label_noise=noise
        ).variance
        self.keep_theory(exact=exact, naive=torch.full_like(exact, eta * noise**2 / (2 * size)))

    def update(self, generator: torch.Generator) -> None:
        eta, size, noise = self.learning_rate, self.batch_size, self.label_noise
        replicas, d = self.delta.shape
        shape = (replicas, size, d + 1)
        z = torch.randn(shape, dtype=torch.float64, device=self.delta.device, generator=generator)
        x = z[..., :d] * self.curvature.sqrt()
        error = (x @ self.delta[..., None]).squeeze(-1) - noise * z[..., d]  # (R, S)
        self.delta.sub_((error[:, None] @ x).squeeze(1), alpha=eta / size)

    def fluctuation(self) -> Tensor:
        return self.delta.square()


class FiniteSetRuns(_Runs):
    """Regression on a few examples drawn with replacement (see `finite_set_covariance`)."""

    learning_rate, batch_size = 0.1, 2
    inputs: Tensor
    residuals: Tensor

    def __init__(
        self, samples: int = 12, inputs: int = 6, replicas: int = 4000, discard: int = 700, seed: int = 0
    ) -> None:
        super().__init__((replicas, inputs, inputs), discard)
        drawn = torch.Generator().manual_seed(seed)
        x = torch.randn(samples, inputs, generator=drawn, dtype=torch.float64)
        y = torch.randn(samples, generator=drawn, dtype=torch.float64)
        self.register_buffer("inputs", x)
        self.register_buffer("residuals", y - x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0])
        self.delta = nn.Parameter(torch.zeros(replicas, inputs, dtype=torch.float64))
        hessian, eta = x.mT @ x / samples, self.learning_rate
        noise = x.mT @ (self.residuals.square()[:, None] * x) / samples / self.batch_size
        self.keep_theory(
            exact=finite_set_covariance(x, self.residuals, learning_rate=eta, batch_size=self.batch_size),
            additive=stationary_covariance(hessian, noise, eta),
            continuum=continuum_covariance(hessian, noise, eta),
        )

    def update(self, generator: torch.Generator) -> None:
        shape = (len(self.delta), self.batch_size)
        batch = torch.randint(len(self.inputs), shape, generator=generator, device=self.delta.device)
        drawn = self.inputs[batch]  # (R, S, d)
        error = (drawn @ self.delta[..., None]).squeeze(-1) - self.residuals[batch]
        self.delta.sub_((error[:, None] @ drawn).squeeze(1), alpha=self.learning_rate / self.batch_size)

    def fluctuation(self) -> Tensor:
        return self.delta[:, :, None] * self.delta[:, None, :]


class TwoLayerRuns(_Runs):
    """W₂W₁x in the gauge that SGD selects, in the singular bases (see `two_layer_variances`).

    Args:
        modes: singular values of W₂W₁.
        frozen: keep W₁.
    """

    inputs, outputs, batch_size, learning_rate = 8, 4, 20, 0.005
    start: Tensor
    target: Tensor

    def __init__(
        self,
        modes: tuple[float, ...] = (3, 1, 0.4),
        frozen: bool = False,
        replicas: int = 250,
        discard: int = 1500,
    ) -> None:
        super().__init__((replicas, self.outputs, len(modes)), discard)
        s1, s2 = stationary_gauge(torch.tensor(modes), inputs=self.inputs, outputs=self.outputs)
        hidden = len(modes)
        first = torch.zeros(hidden, self.inputs, dtype=torch.float64)
        second = torch.zeros(self.outputs, hidden, dtype=torch.float64)
        first[:, :hidden], second[:hidden] = torch.diag(s1), torch.diag(s2)
        self.register_buffer("curvature", s1.square())  # felt by layer 2 along its columns
        self.register_buffer("strengths", s2)
        self.register_buffer("start", second)
        self.register_buffer("target", second @ first)
        self.frozen = frozen
        coupled = two_layer_variances(s1, s2, inputs=self.inputs, outputs=self.outputs).second
        self.keep_theory(exact=torch.ones_like(coupled) if frozen else coupled)
        self.first, self.second = (nn.Parameter(w.repeat(replicas, 1, 1)) for w in (first, second))

    def update(self, generator: torch.Generator) -> None:
        TwoLayerEnsemble(
            self.first.data, self.second.data, self.target,
            learning_rate=self.learning_rate, batch_size=self.batch_size, label_noise=1.0,
            frozen_first=self.frozen,
        ).advance(generator)  # fmt: skip

    def fluctuation(self) -> Tensor:
        """Of layer 2, in units of ηs²/(2S)."""
        return (self.second - self.start).square() * (2 * self.batch_size / self.learning_rate)


class GaugeRuns(_Runs):
    """The scalar network uvx, whose u² - v² is forgotten on the slow time S/(η²s²)."""

    batch_size, learning_rate = 20, 0.1

    def __init__(self, u: float = 1.6, v: float = 0.7, replicas: int = 4000) -> None:
        super().__init__((replicas,), discard=0)
        self.sums.fill_(1)
        self.u, self.v = u, v
        setting = {"learning_rate": self.learning_rate, "batch_size": self.batch_size, "label_noise": 1.0}
        rate = scalar_gauge_rate(u, v, **setting)  # type: ignore[arg-type]
        self.keep_theory(rate=torch.tensor(rate, dtype=torch.float64))
        self.second, self.first = (
            nn.Parameter(torch.full((replicas, 1, 1), w, dtype=torch.float64)) for w in (u, v)
        )

    def update(self, generator: torch.Generator) -> None:
        target = self.first.new_tensor([[self.u * self.v]])
        TwoLayerEnsemble(
            self.first.data, self.second.data, target,
            learning_rate=self.learning_rate, batch_size=self.batch_size, label_noise=1.0,
        ).advance(generator)  # fmt: skip

    def advance(self, step: int, generator: torch.Generator) -> None:
        """One update of every run; the present value is kept, not a mean over time."""
        with torch.no_grad():
            self.update(generator)
            self.sums.copy_(self.fluctuation())

    def fluctuation(self) -> Tensor:
        """(u² - v²)/(u² - v²)(0), (R,)."""
        difference = (self.second.square() - self.first.square()).flatten()
        return difference / (self.u**2 - self.v**2)


class LinearEnsembles(nn.Module):
    """One- and two-layer linear networks, thousands of independent runs of SGD advanced together.

    Args:
        replicas: runs of each kind; two-layer networks, which are larger, take a sixteenth.
        discard: steps before the averages begin.
        seed: of the data.
    """

    age: Tensor

    def __init__(self, replicas: int = 4000, discard: int = 1500, seed: int = 0) -> None:
        super().__init__()
        few = max(2, replicas // 16)
        self.seed = seed
        self.online = OnlineRuns(replicas=replicas, discard=discard)
        self.finite = FiniteSetRuns(replicas=replicas, discard=discard)
        self.coupled = TwoLayerRuns(replicas=few, discard=discard)
        self.frozen = TwoLayerRuns(replicas=few, discard=discard, frozen=True)
        self.gauge = GaugeRuns(replicas=replicas)
        self.register_buffer("discarded", torch.tensor(discard))
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))

    def advance(self, batch: Any) -> None:
        """One update of every run; the data depend on the seed and the step alone."""
        step = int(self.age)
        generator = torch.Generator(self.age.device).manual_seed((self.seed << 32) + step)
        for runs in (self.online, self.finite, self.coupled, self.frozen, self.gauge):
            runs.advance(step, generator)
        self.age += 1

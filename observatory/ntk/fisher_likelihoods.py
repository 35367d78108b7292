"""Likelihoods p(y|f) of the outputs: what the Fisher information of a network needs to know about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

Likelihood = Literal["categorical", "bernoulli", "poisson", "gaussian"]


class OutputLikelihood(ABC):
    """p(y|f) with f of shape (n, ..., C); what is not finite stays so.

    H = -∂² ln p/∂f² depends on f alone and is positive, H = L Lᵀ. For these four it is also the mean of the
    squared score, E_y[g gᵀ].
    """

    @abstractmethod
    def root(self, f: Tensor, e: Tensor) -> Tensor:
        """L e for every example; e broadcasts to (D, n, ..., C)."""

    def columns(self, f: Tensor) -> Tensor:
        """Columns of a root of H, (D, n, ..., C): directions v_d with Σ_d v_d v_dᵀ = H."""
        c = f[0].numel()
        return self.root(f, torch.eye(c, dtype=f.dtype, device=f.device).reshape(c, 1, *f.shape[1:]))

    @abstractmethod
    def score(self, f: Tensor, y: Tensor) -> Tensor:
        """g = -∂ ln p(y|f)/∂f, shape of f."""

    @abstractmethod
    def sample(self, f: Tensor, generator: torch.Generator) -> Tensor:
        """y ~ p(y|f), drawn on the generator's device."""

    @abstractmethod
    def information(self, f: Tensor, u: Tensor) -> Tensor:
        """uᵀHu summed over everything but the first axis of u, which is (D, n, ..., C)."""

    def fitted(self, f: Tensor, y: Tensor) -> Tensor:
        """y as targets for outputs f.

        Raises:
            ValueError: if it cannot be.
        """
        if y.numel() != f.numel() or len(y) != len(f):
            raise ValueError(
                f"outputs of shape {tuple(f.shape)} need targets of that shape, got {tuple(y.shape)}"
            )
        return y.reshape(f.shape)

    def check_outputs(self, f: Tensor) -> None:  # noqa: B027 - most take any outputs
        """Raises a ValueError if f cannot be what this likelihood takes."""

    def counted(self, f: Tensor, y: Tensor | None) -> Tensor:
        """Which outputs carry information, broadcastable to f: all, unless targets are marked as padding."""
        return torch.ones((len(f), *(1,) * (f.ndim - 1)), dtype=torch.bool, device=f.device)


@dataclass(frozen=True)
class Categorical(OutputLikelihood):
    """p = softmax f over the last axis, H = diag(p) - p pᵀ.

    L = diag(√p) - p √pᵀ stays accurate where p saturates. Targets are classes (n, ...); `ignore_index` marks
    those that do not count.
    """

    ignore_index: int = -100

    def root(self, f: Tensor, e: Tensor) -> Tensor:
        p = f.softmax(-1)
        weighted = p.sqrt() * e
        return weighted - p * weighted.sum(-1, keepdim=True)

    def columns(self, f: Tensor) -> Tensor:
        """C - 1 for each site, since H has that rank.

        diag(√p) Q, with Q an orthonormal basis of the complement of √p, here the first C - 1 columns of the
        reflection that takes √p to the last axis: nothing cancels where p saturates.
        """
        root = f.softmax(-1).sqrt().reshape(len(f), -1, f.shape[-1])  # (n, sites, C)
        first, last = root[..., :-1], root[..., -1:]
        rows = torch.cat([first.square() / (1 + last), last], -1)
        found = torch.diag_embed(first)  # (n, sites, C - 1, C - 1)
        found = torch.nn.functional.pad(found, (0, 1)) - first[..., :, None] * rows[..., None, :]
        spread = torch.diag_embed(found.permute(2, 0, 3, 1), dim1=0, dim2=3)  # (sites, C - 1, n, sites, C)
        return spread.reshape(-1, *f.shape)

    def score(self, f: Tensor, y: Tensor) -> Tensor:
        hot = one_hot(y.clamp_min(0).long(), f.shape[-1])
        return (f.softmax(-1) - hot) * self.counted(f, y)

    def sample(self, f: Tensor, generator: torch.Generator) -> Tensor:
        p = f.softmax(-1).to(generator.device)
        p = torch.where(p.isfinite().all(-1, keepdim=True), p, 1 / p.shape[-1])
        drawn = torch.multinomial(p.flatten(0, -2), 1, generator=generator)
        return drawn.reshape(f.shape[:-1]).to(f.device)

    def information(self, f: Tensor, u: Tensor) -> Tensor:
        p = f.softmax(-1)
        return ((p * u.square()).sum(-1) - (p * u).sum(-1).square()).reshape(len(u), -1).sum(1)

    def fitted(self, f: Tensor, y: Tensor) -> Tensor:
        if y.is_floating_point() or y.shape != f.shape[:-1]:
            raise ValueError(
                f"a categorical likelihood of outputs {tuple(f.shape)} needs integer classes of shape "
                f"{tuple(f.shape[:-1])}, got {y.dtype} of shape {tuple(y.shape)}"
            )
        labels = y[y != self.ignore_index]
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < f.shape[-1]:
            raise ValueError(
                f"classes from {int(labels.min())} to {int(labels.max())} among the targets; {f.shape[-1]} "
                f"outputs mean classes 0 to {f.shape[-1] - 1}, or {self.ignore_index} for padding"
            )
        return y

    def check_outputs(self, f: Tensor) -> None:
        if f.ndim < 2:
            raise ValueError(
                f"a categorical likelihood needs outputs (N, ..., C), got {tuple(f.shape)}; "
                "one logit per example means likelihood='bernoulli'"
            )
        if f.shape[-1] > 1 and bool((f >= 0).all()) and bool(((f.sum(-1) - 1).abs() < 1e-4).all()):
            raise ValueError(
                "the outputs are probabilities, not logits: leave out the last softmax, or undo it with "
                "output=torch.log"
            )

    def counted(self, f: Tensor, y: Tensor | None) -> Tensor:
        return super().counted(f, y) if y is None else (y != self.ignore_index)[..., None]


class _Separate(OutputLikelihood):
    """Outputs that are independent given the input: H is diagonal."""

    @abstractmethod
    def mean(self, f: Tensor) -> Tensor:
        """E[y|f]."""

    @abstractmethod
    def curvature(self, f: Tensor) -> Tensor:
        """Diagonal of H."""

    def root(self, f: Tensor, e: Tensor) -> Tensor:
        return self.curvature(f).sqrt() * e

    def score(self, f: Tensor, y: Tensor) -> Tensor:
        return self.mean(f) - y

    def information(self, f: Tensor, u: Tensor) -> Tensor:
        return (self.curvature(f) * u.square()).reshape(len(u), -1).sum(1)


@dataclass(frozen=True)
class Bernoulli(_Separate):
    """Independent logits, p(1|f) = σ(f), H = σ(f) σ(-f)."""

    def mean(self, f: Tensor) -> Tensor:
        return f.sigmoid()

    def curvature(self, f: Tensor) -> Tensor:
        return f.sigmoid() * (-f).sigmoid()

    def sample(self, f: Tensor, generator: torch.Generator) -> Tensor:
        p = f.sigmoid().nan_to_num(0.5).to(generator.device)
        return torch.bernoulli(p, generator=generator).to(f.device)

    def fitted(self, f: Tensor, y: Tensor) -> Tensor:
        if not bool(((y >= 0) & (y <= 1)).all()):
            raise ValueError(f"a Bernoulli likelihood needs targets from 0 to 1, got {y.min()} to {y.max()}")
        return super().fitted(f, y)


@dataclass(frozen=True)
class Poisson(_Separate):
    """Counts of mean e^f, H = e^f."""

    def mean(self, f: Tensor) -> Tensor:
        return f.exp()

    def curvature(self, f: Tensor) -> Tensor:
        return f.exp()

    def sample(self, f: Tensor, generator: torch.Generator) -> Tensor:
        rate = f.exp().nan_to_num(0.0, 0.0).to(generator.device)
        return torch.poisson(rate, generator=generator).to(f.device)

    def fitted(self, f: Tensor, y: Tensor) -> Tensor:
        if not bool((y >= 0).all()):
            raise ValueError(f"a Poisson likelihood needs counts from 0, got {y.min()}")
        return super().fitted(f, y)


@dataclass(frozen=True)
class Gaussian(_Separate):
    """Means f with fixed variance σ², H = 1/σ². σ² = 1 belongs to the loss ½‖f - y‖²."""

    sigma2: float = 1.0

    def mean(self, f: Tensor) -> Tensor:
        return f

    def curvature(self, f: Tensor) -> Tensor:
        return torch.full_like(f, 1 / self.sigma2)

    def score(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y) / self.sigma2

    def sample(self, f: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(f.shape, dtype=f.dtype, device=generator.device, generator=generator)
        return f + self.sigma2**0.5 * noise.to(f.device)


def output_likelihood(
    name: Likelihood | None,
    y: Tensor | None,
    outputs: int,
    *,
    sigma2: float = 1.0,
    match_loss: bool = False,
    ignore_index: int = -100,
) -> OutputLikelihood:
    """The likelihood of a name; without one categorical for integer targets and Gaussian for others.

    Args:
        name: of the likelihood.
        y: targets, if there are any.
        outputs: C, number of outputs of one example.
        sigma2: variance of the Gaussian.
        match_loss: take the variance C/2, whose -ln p is `torch.nn.MSELoss` (a mean over outputs, without ½).
        ignore_index: class that marks padding.

    Raises:
        ValueError: if the name is unknown, or neither a name nor targets are given, or σ² is not positive.
    """
    if name is None and y is None:
        raise ValueError(
            "without targets the likelihood must be named: "
            "likelihood='categorical', 'bernoulli', 'poisson' or 'gaussian'"
        )
    name = name or ("gaussian" if y is not None and y.is_floating_point() else "categorical")
    if sigma2 <= 0:
        raise ValueError(f"a variance is positive, got sigma2={sigma2}")
    if name == "gaussian":
        return Gaussian(outputs / 2 if match_loss else sigma2)
    if name == "categorical":
        return Categorical(ignore_index)
    if name not in ("bernoulli", "poisson"):
        raise ValueError(
            f"likelihood must be 'categorical', 'bernoulli', 'poisson' or 'gaussian', got {name!r}"
        )
    return Bernoulli() if name == "bernoulli" else Poisson()

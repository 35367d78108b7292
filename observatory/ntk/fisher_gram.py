"""Spectrum of the Fisher information through a Gram matrix over examples; signal and noise of gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from observatory.looking.look import Loss
from observatory.looking.model import Forward, ModelFunction, Output
from observatory.looking.probe import Probe
from observatory.ntk.collective import centred, shannon_entropy
from observatory.ntk.directions import loss_gradients
from observatory.ntk.empirical import empirical_ntk
from observatory.ntk.fisher_estimators import fitted_targets
from observatory.ntk.fisher_likelihoods import Likelihood, OutputLikelihood, output_likelihood
from observatory.ntk.norms import squared_gradient_norms

SpectrumKind = Literal["true", "empirical", "covariance"]


@dataclass(frozen=True)
class FisherSpectrum:
    """Eigenvalues of the Fisher information matrix (P × P), all that can differ from zero."""

    eigenvalues: Tensor  # (R,), float64, falling
    trace: Tensor  # Σλ
    largest: Tensor  # λ₁
    frobenius: Tensor  # ‖F‖ = √Σλ²
    entropy: Tensor  # -Σ q ln q, q = λ/Σλ, in nats
    participation_ratio: Tensor  # (Σλ)²/Σλ²


def fisher_spectrum(
    model: nn.Module | ModelFunction,
    x: Any,
    y: Tensor | None = None,
    *,
    likelihood: Likelihood | None = None,
    kind: SpectrumKind = "true",
    sigma2: float = 1.0,
    match_loss: bool = False,
    max_memory: int = 2**30,
    forward: Forward | None = None,
    output: Output | None = None,
    select: str | Callable[[str], bool] | None = None,
) -> FisherSpectrum:
    """Eigenvalues of F from the Gram matrix of scores, which has the same ones apart from zeros.

    "true": L_iᵀ Θ_ij L_j/N, NC × NC, and N(C - 1) for a softmax. "empirical": ∇ℓ_i·∇ℓ_j/N with the
    targets y, N × N. "covariance": the same centred, that is Cov(∇ℓ) over the examples. (Karakida, Akaho,
    Amari 2019, arXiv:1910.05992.) Arguments are those of `fisher_trace`; padding must be left out.

    Raises:
        ValueError: if the Gram matrix and what it is made of exceed `max_memory` bytes, or targets are needed
            and missing, or the spectrum is not finite.
    """
    if kind not in ("true", "empirical", "covariance"):
        raise ValueError(f"kind must be 'true', 'empirical' or 'covariance', got {kind!r}")
    function = ModelFunction.of(model, forward=forward, output=output, select=select)
    n = len(Probe(x))
    if n == 0:
        raise ValueError("there are no examples to look at: the probe is empty")
    with torch.no_grad():
        f = function(x).detach()
    c = f[0].numel()
    whom = output_likelihood(likelihood, y, c, sigma2=sigma2, match_loss=match_loss)
    fitted, counted = fitted_targets(whom, f, y, slice(None))
    if not bool(counted.all()):
        raise ValueError("some targets mark padding: give only examples that count")
    if kind == "true":
        gram = _information_gram(function, x, whom, f, max_memory)
    elif fitted is not None:
        gram = _score_gram(function, x, whom.score(f, fitted), max_memory)
        gram = centred(gram) if kind == "covariance" else gram
    else:
        raise ValueError(f"kind={kind!r} needs targets y, one for each example")
    if not bool(gram.isfinite().all()):
        raise ValueError("the Gram matrix is not finite: the network has diverged, or its gradients overflow")
    return _summarised(torch.linalg.eigvalsh(gram / n).flip(-1).clamp_min(0))


def _information_gram(
    function: ModelFunction, x: Any, likelihood: OutputLikelihood, f: Tensor, max_memory: int
) -> Tensor:
    """L_iᵀ Θ_ij L_j, (ND, ND) with D columns in L."""
    n, c = len(f), f[0].numel()
    needed = 3 * (n * c) ** 2 * 8  # bytes of the kernel and of two steps from it to the Gram
    if needed > max_memory:
        raise ValueError(
            f"the Gram matrix of {n} examples with {c} outputs needs {needed / 1e9:.3g} GB of "
            f"max_memory = {max_memory / 1e9:.3g} GB: give fewer examples, kind='empirical' (N × N), or ask "
            "for fisher_trace alone"
        )
    root = likelihood.columns(f).reshape(-1, n, c).double()  # (direction, example, output)
    theta = empirical_ntk(function, x, max_memory=max_memory).reshape(n, c, n, c).double()
    half = torch.einsum("aic,icjd->iajd", root, theta)
    return torch.einsum("iajd,bjd->iajb", half, root).reshape(n * len(root), n * len(root))


def _score_gram(function: ModelFunction, x: Any, score: Tensor, max_memory: int) -> Tensor:
    """∇ℓ_i·∇ℓ_j from the loss kernel of ℓ_i = g_i · f_i with constant g."""

    def loss(f: Tensor, g: Tensor) -> Tensor:
        return (f * g).sum() / len(f)

    return empirical_ntk(function, x, kind="loss", targets=score, loss=loss, max_memory=max_memory).double()


def _summarised(eigenvalues: Tensor) -> FisherSpectrum:
    trace, squares = eigenvalues.sum(), eigenvalues.square().sum()
    return FisherSpectrum(
        eigenvalues=eigenvalues,
        trace=trace,
        largest=eigenvalues[0],
        frobenius=squares.sqrt(),
        entropy=shannon_entropy(eigenvalues),
        participation_ratio=trace.square() / squares,
    )


@dataclass(frozen=True)
class GradientNoise:
    """Signal and noise of the gradient of a loss over N examples; 0-dimensional float64 tensors."""

    signal: Tensor  # ‖∇L‖²
    noise: Tensor  # Tr Cov = (1/N) Σ ‖∇ℓ_i‖² - ‖∇L‖²
    noise_scale: Tensor  # Tr Cov/‖∇L‖²: batch size at which signal and noise of a step are equal
    mean_square: Tensor  # (1/N) Σ ‖∇ℓ_i‖², the trace of the empirical Fisher information if ℓ = -ln p


def gradient_noise(
    model: nn.Module | ModelFunction,
    x: Any,
    y: Tensor,
    *,
    loss: Loss | None = None,
    forward: Forward | None = None,
    output: Output | None = None,
    select: str | Callable[[str], bool] | None = None,
) -> GradientNoise:
    """Trace of the covariance of ∇ℓ_i over the examples, which is the centred empirical Fisher information.

    (McCandlish et al. 2018, arXiv:1812.06162, call Tr Cov/‖∇L‖² the simple noise scale.) One backward pass
    for the norms and one for the mean; no Gram matrix. Examples are taken as the whole population; as a
    sample of a larger one multiply the noise by N/(N - 1).

    Args:
        loss: of (outputs, targets), mean over the examples; default that of the likelihood.
    """
    function = ModelFunction.of(model, forward=forward, output=output, select=select)
    n = len(Probe(x))
    mean_square = squared_gradient_norms(
        function, x, lambda f, at: loss_gradients(f, y[at], loss)[None]
    ).double()  # (1, N)
    theta = {name: p.detach().requires_grad_() for name, p in function.theta.items()}
    with torch.enable_grad():
        f = function(x, theta)
    g = loss_gradients(f.detach(), y, loss) / n
    gradients = torch.autograd.grad(f, list(theta.values()), g, allow_unused=True)
    signal = torch.stack([part.double().square().sum() for part in gradients if part is not None]).sum()
    noise = (mean_square.mean() - signal).clamp_min(0)
    return GradientNoise(signal, noise, noise / signal, mean_square.mean())

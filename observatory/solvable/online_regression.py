"""Linear regression by stochastic gradient descent: exact stationary fluctuations of the weights.

Conventions: loss L = ½⟨(w·x - y)²⟩ with Hessian H = ⟨x xᵀ⟩, learning rate η, batches of S examples,
δ = w - w*, Σ = ⟨δ δᵀ⟩. Everything is float64; leading dimensions are ensembles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Sampling = Literal["with replacement", "without replacement"]
DIRECT_BELOW = 40  # dimension up to which the d² × d² system is solved directly


def finite_population_factor(sampling: Sampling, batch_size: float, samples: float) -> float:
    """f in Cov(minibatch gradient) = (f/S) C: 1 with replacement, (N - S)/(N - 1) without repeats in a batch.

    Raises:
        ValueError: if the batch is larger than the set it is drawn from, or the sampling is unknown.
    """
    if sampling == "with replacement":
        return 1.0
    if sampling != "without replacement":
        raise ValueError(f"sampling must be 'with replacement' or 'without replacement', got {sampling!r}")
    if not 1 <= batch_size <= samples:
        raise ValueError(
            f"batches of {batch_size:g} cannot be drawn without repeats from {samples:g} examples"
        )
    return (samples - batch_size) / (samples - 1) if samples > 1 else 0.0


def stationary_covariance(hessian: Tensor, noise: Tensor, learning_rate: float) -> Tensor:
    """Σ of δ' = (1 - ηH)δ - ηξ with ⟨ξξᵀ⟩ = C_S: solves HΣ + ΣH - ηHΣH = ηC_S.

    In the eigenbasis of H, Σ_ij = ηC_ij/(h_i + h_j - ηh_i h_j). (Gross, Raulf, Räth 2024, arXiv:2311.14120;
    Liu, Ziyin, Ueda 2021, arXiv:2012.03636.)

    Args:
        hessian: H, symmetric, 0 < ηh < 2, shape (..., d, d).
        noise: C_S, covariance of the gradient of one batch, shape (..., d, d).
        learning_rate: η.

    Returns:
        Σ, shape (..., d, d), at the cost of one eigendecomposition.

    Raises:
        ValueError: if an eigenvalue of ηH lies outside (0, 2): there is no stationary state.
    """
    return _lyapunov(hessian, noise, learning_rate, learning_rate)


def continuum_covariance(hessian: Tensor, noise: Tensor, learning_rate: float) -> Tensor:
    """Σ in the limit of small η: solves HΣ + ΣH = ηC_S. Arguments as in `stationary_covariance`."""
    return _lyapunov(hessian, noise, learning_rate, 0.0)


def _lyapunov(hessian: Tensor, noise: Tensor, learning_rate: float, discreteness: float) -> Tensor:
    hessian, noise = hessian.double(), noise.double()
    h, basis = torch.linalg.eigh(hessian)
    step = learning_rate * h
    if not bool((step > 0).all()) or bool((discreteness * h >= 2).any()):
        raise ValueError(
            f"no stationary state: the eigenvalues of ηH must lie in (0, 2), got {float(step.min()):.3g} "
            f"to {float(step.max()):.3g}; change the learning rate or project out the flat directions"
        )
    rates = h[..., :, None] + h[..., None, :] - discreteness * h[..., :, None] * h[..., None, :]
    rotated = basis.mT @ noise @ basis
    return basis @ (learning_rate * rotated / rates) @ basis.mT


@dataclass(frozen=True)
class OnlineRegression:
    """Stationary fluctuations of the weights under fresh Gaussian data."""

    variance: Tensor  # σ_i², shape (..., d), weight units squared; inf without a stationary state
    feedback: Tensor  # κ̂ < 1, shape (...): share of the noise that the fluctuations themselves cause
    excess: Tensor  # E = ⟨δᵀHδ⟩, shape (...): twice the excess loss


def online_regression(
    curvature: Tensor, *, learning_rate: float, batch_size: int, label_noise: float
) -> OnlineRegression:
    """Exact at every stable η for x ~ N(0, diag h), y = w*·x + ε, Var ε = s², batches drawn afresh.

    σ_i² = (η/S)(E + s²)/D_i,   D_i = 2 - ηh_i(1 + 1/S),   κ̂ = (η/S) Σ h_i/D_i,   E = s²κ̂/(1 - κ̂).

    A stationary state exists if all D_i > 0 and κ̂ < 1; otherwise variance and excess are inf.

    Args:
        curvature: h, shape (..., d).
        learning_rate: η.
        batch_size: S.
        label_noise: s.
    """
    h, eta, size = curvature.double(), learning_rate, batch_size
    gap = 2 - eta * h * (1 + 1 / size)
    feedback = eta / size * (h / gap).sum(-1)
    stable = (gap > 0).all(-1) & (feedback < 1)
    excess = torch.where(stable, label_noise**2 * feedback / (1 - feedback), torch.inf)
    variance = eta / size * (excess + label_noise**2)[..., None] / torch.where(gap > 0, gap, 1.0)
    return OnlineRegression(variance, feedback, excess)


def finite_set_covariance(
    inputs: Tensor,
    residuals: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    sampling: Sampling = "with replacement",
    tolerance: float = 1e-13,
) -> Tensor:
    """Exact Σ for batches drawn independently from a training set of N examples.

    HΣ + ΣH - ηHΣH - (ηf/S)[(1/N) Σ_μ (x_μᵀΣx_μ) x_μx_μᵀ - HΣH] = (ηf/S) C*,  C* = (1/N) Σ_μ ε_μ² x_μx_μᵀ.

    Args:
        inputs: x_μ, shape (N, d), N > d.
        residuals: ε_μ = y_μ - w*·x_μ at the least-squares solution w*, shape (N,).
        learning_rate: η.
        batch_size: S.
        sampling: how the examples of one batch are drawn.
        tolerance: relative, of the fixed-point iteration that replaces the direct solution for d > 40.

    Returns:
        Σ, shape (d, d).

    Raises:
        ValueError: if the residuals are not orthogonal to the inputs, or training is unstable.
    """
    x, residuals = inputs.double(), residuals.double()
    n = x.shape[0]
    drift = (residuals @ x).abs().max()
    if drift > 1e-8 * (residuals.abs() @ x.abs()).max():
        raise ValueError(
            "Σ ε_μ x_μ is not zero: give the residuals of the least-squares solution, not of the teacher"
        )
    hessian = x.mT @ x / n
    scale = finite_population_factor(sampling, batch_size, n) / batch_size
    noise = scale * _second_moment(x, residuals.square())
    if x.shape[1] <= DIRECT_BELOW:
        return _solve_directly(x, hessian, noise, learning_rate, scale)
    sigma = stationary_covariance(hessian, noise, learning_rate)
    for _ in range(10_000):
        feedback = scale * (_second_moment(x, ((x @ sigma) * x).sum(-1)) - hessian @ sigma @ hessian)
        update = stationary_covariance(hessian, noise + feedback, learning_rate)
        change, sigma = (update - sigma).norm(), update
        if change <= tolerance * sigma.norm():
            return sigma
        if not bool(change.isfinite()):
            break
    raise ValueError(
        f"training is unstable at learning rate {learning_rate:g}: the fluctuations feed on themselves"
    )


def _second_moment(x: Tensor, weights: Tensor) -> Tensor:
    """(1/N) Σ_μ weight_μ x_μx_μᵀ."""
    return x.mT @ (weights[:, None] * x) / x.shape[0]


def _solve_directly(x: Tensor, hessian: Tensor, noise: Tensor, eta: float, scale: float) -> Tensor:
    """`scale` is f/S, `noise` is (f/S) C*; vec(AΣB) = (A ⊗ Bᵀ) vec Σ."""
    d = x.shape[1]
    one = torch.eye(d).to(x)
    pairs = (x[:, :, None] * x[:, None, :]).flatten(1)  # (N, d²)
    fourth = pairs.mT @ pairs / x.shape[0]
    twice = torch.kron(hessian, hessian)
    operator = (
        torch.kron(hessian, one) + torch.kron(one, hessian) - eta * twice - eta * scale * (fourth - twice)
    )
    sigma = torch.linalg.solve(operator, eta * noise.flatten()).reshape(d, d)
    if float(torch.linalg.eigvalsh(sigma)[0]) < -1e-10 * float(sigma.norm()):
        raise ValueError(
            f"training is unstable at learning rate {eta:g}: the second moment has no stationary value"
        )
    return (sigma + sigma.mT) / 2


def simulate_online_regression(
    curvature: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    label_noise: float,
    replicas: int,
    steps: int,
    discard: int,
    generator: torch.Generator,
) -> Tensor:
    """Mean δ_i² of an ensemble of SGD runs on fresh Gaussian data, over replicas and steps after `discard`.

    Args:
        curvature: h, shape (d,). Other arguments as in `online_regression`.

    Returns:
        Shape (d,).
    """
    h = curvature.double()
    d, root = h.shape[-1], h.sqrt()
    delta = torch.zeros(replicas, d, dtype=h.dtype, device=h.device)
    total = torch.zeros_like(h)
    for step in range(steps):
        z = torch.randn(replicas, batch_size, d + 1, dtype=h.dtype, device=h.device, generator=generator)
        x, noise = z[..., :d] * root, label_noise * z[..., d]
        error = (x @ delta[..., None]).squeeze(-1) - noise  # (R, S)
        delta -= learning_rate / batch_size * (error[:, None] @ x).squeeze(1)
        if step >= discard:
            total += delta.square().mean(0)
    return total / (steps - discard)


def simulate_finite_set(
    inputs: Tensor,
    residuals: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    replicas: int,
    steps: int,
    discard: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Equal-time and one-step covariances of an ensemble of SGD runs with replacement on a training set.

    Returns:
        Σ = ⟨δ_t δ_tᵀ⟩ and A = ⟨δ_{t+1} δ_tᵀ⟩, each (d, d), over replicas and steps after `discard`.
    """
    x, epsilon = inputs.double(), residuals.double()
    n, d = x.shape
    delta = x.new_zeros(replicas, d)
    equal, shifted = x.new_zeros(d, d), x.new_zeros(d, d)
    for step in range(steps):
        batch = torch.randint(n, (replicas, batch_size), generator=generator, device=x.device)
        drawn = x[batch]  # (R, S, d)
        error = (drawn @ delta[..., None]).squeeze(-1) - epsilon[batch]
        after = delta - learning_rate / batch_size * (error[:, None] @ drawn).squeeze(1)
        if step >= discard:
            equal += delta.mT @ delta
            shifted += after.mT @ delta
        delta = after
    count = replicas * (steps - discard)
    return equal / count, shifted / count

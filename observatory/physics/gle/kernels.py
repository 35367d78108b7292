"""Parametric memory kernels: sums of exponentials and damped cosines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExponentialKernel:
    """Γ(t) = 2γ₀δ(t) + Σᵢ (γᵢ/τᵢ) e^{-t/τᵢ} + Σⱼ aⱼ e^{-t/σⱼ}[cos ωⱼt + sin(ωⱼt)/(ωⱼσⱼ)].

    Leading dimensions are parameter sets. Each γᵢ is a friction, not an amplitude, and nothing is divided by
    the mass. A damped cosine has the friction 2aσ/(1 + ω²σ²).
    """

    gamma: Tensor  # γᵢ ≥ 0, (..., n), unit of a friction
    tau: Tensor  # τᵢ > 0, (..., n), unit of time
    instantaneous: Tensor  # γ₀ ≥ 0, (...)
    amplitude: Tensor  # aⱼ ≥ 0, (..., c), friction over time
    decay: Tensor  # σⱼ > 0, (..., c), unit of time
    frequency: Tensor  # ωⱼ > 0, (..., c), radians over time

    @classmethod
    def of(cls, gamma: Tensor, tau: Tensor) -> ExponentialKernel:
        """Σᵢ (γᵢ/τᵢ) e^{-t/τᵢ} alone, of what is positive by construction; gradients flow."""
        none = gamma[..., :0]
        return cls(gamma, tau, gamma.new_zeros(gamma.shape[:-1]), none, none, none)

    @property
    def cosines(self) -> Tensor:
        """Rows (a, σ, ω), (..., c, 3)."""
        return torch.stack([self.amplitude, self.decay, self.frequency], -1)

    def at(self, t: Tensor) -> Tensor:
        """Γ(t) for t > 0, shape (..., times) of t (times,); the δ is left out."""
        wave, damped = self._waves(t)
        lasting = self._over(t, self.gamma / self.tau, torch.exp(-t / self.tau[..., None]))
        ratio = 1 / (self.frequency * self.decay)[..., None]
        return lasting + self._over(t, self.amplitude, damped * (wave.cos() + ratio * wave.sin()))

    def integral(self, t: Tensor) -> Tensor:
        """G(t) = ∫_0^t Γ ds = γ₀ + Σ γᵢ(1 - e^{-t/τᵢ}) + ..., shape (..., times); γ₀ is there from t = 0."""
        wave, damped = self._waves(t)
        lasting = self._over(t, self.gamma, -torch.expm1(-t / self.tau[..., None]))
        w, s = self.frequency[..., None], self.decay[..., None]
        shape = 1 - damped * (wave.cos() + (1 - (w * s) ** 2) / (2 * w * s) * wave.sin())
        return self.instantaneous[..., None] + lasting + self._over(t, self._wave_friction(), shape)

    def friction(self) -> Tensor:
        """γ = G(∞), (...)."""
        return self.instantaneous + self.gamma.sum(-1) + self._wave_friction().sum(-1)

    def memory_time(self) -> Tensor:
        """τ = ∫tΓ/∫Γ, (...); for exponentials Σγᵢτᵢ/Σγᵢ."""
        q = 1 + (self.frequency * self.decay) ** 2
        waves = self.amplitude * self.decay**2 * (3 - (self.frequency * self.decay) ** 2) / q**2
        return ((self.gamma * self.tau).sum(-1) + waves.sum(-1)) / self.friction()

    def laplace(self, s: Tensor) -> Tensor:
        """Γ̃(s) = ∫_0^∞ Γ e^{-st} dt = γ₀ + Σ γᵢ/(1 + sτᵢ) + ..., shape (..., points), s may be complex."""
        lasting = self._over(s, self.gamma, 1 / (1 + s * self.tau[..., None]))
        rate = 1 / self.decay[..., None]
        pole = (s + rate) ** 2 + self.frequency[..., None] ** 2
        return self.instantaneous[..., None] + lasting + self._over(s, self.amplitude, (s + 2 * rate) / pole)

    def spectrum(self, frequency: Tensor) -> Tensor:
        """∫_0^∞ Γ cos(ωt) dt ≥ 0, the power of the random force over 2kT, shape (..., frequencies)."""
        return self.laplace(1j * frequency).real

    def admissible(self) -> Tensor:
        """Whether Γ is the correlation of some random force: no frequency has negative power, (...).

        Positive γᵢ, aⱼ are always admissible; with signs, the spectrum is searched over all time scales.
        """
        rates = torch.cat([1 / self.tau, 1 / self.decay, self.frequency], -1)
        if rates.shape[-1] == 0:
            return self.instantaneous >= 0
        low, high = float(rates.min().log10()) - 3, float(rates.max().log10()) + 3
        grid = torch.logspace(low, high, 4000, dtype=rates.dtype, device=rates.device)
        power = self.spectrum(torch.cat([grid.new_zeros(1), grid]))
        return (power >= -1e-12 * power.abs().amax(-1, keepdim=True)).all(-1)

    def _waves(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.frequency[..., None] * t, torch.exp(-t / self.decay[..., None])

    def _wave_friction(self) -> Tensor:
        return 2 * self.amplitude * self.decay / (1 + (self.frequency * self.decay) ** 2)

    @staticmethod
    def _over(t: Tensor, weight: Tensor, shape: Tensor) -> Tensor:
        return (weight[..., None] * shape).sum(-2)


def exponential_kernel(
    gamma: Tensor | list[float] | tuple[float, ...] = (),
    tau: Tensor | list[float] | tuple[float, ...] = (),
    *,
    instantaneous: Tensor | float = 0.0,
    cosines: Tensor | list[tuple[float, float, float]] = (),  # type: ignore[assignment]
) -> ExponentialKernel:
    """The kernel with frictions γᵢ and times τᵢ (..., n), and damped cosines.

    Args:
        gamma: γᵢ.
        tau: τᵢ.
        instantaneous: γ₀, (...).
        cosines: rows (a, σ, ω), (..., c, 3).

    Raises:
        ValueError: if γ or a is negative, τ or σ or ω not positive, or the shapes differ.
    """
    g, t = (torch.as_tensor(v, dtype=torch.float64) for v in (gamma, tau))
    if g.shape[-1:] != t.shape[-1:]:
        raise ValueError(f"every friction needs its time: got {g.shape[-1]} of γ and {t.shape[-1]} of τ")
    g, t = torch.broadcast_tensors(g, t)
    g0 = torch.as_tensor(instantaneous, dtype=torch.float64, device=g.device).expand(g.shape[:-1])
    waves = torch.as_tensor(cosines, dtype=torch.float64, device=g.device).reshape(*_leading(cosines), -1, 3)
    a, s, w = (column.expand(*g.shape[:-1], -1) for column in waves.unbind(-1))
    _demand("γ", g, bool((g >= 0).all()), "at least 0")
    _demand("γ₀", g0, bool((g0 >= 0).all()), "at least 0")
    _demand("τ", t, bool((t > 0).all()), "positive")
    _demand("(a, σ, ω)", waves, bool((waves > 0).all()), "positive")
    return ExponentialKernel(g, t, g0, a, s, w)


def kernel_of_logarithms(theta: Tensor, terms: int) -> ExponentialKernel:
    """Γ of (ln γᵢ, ln τᵢ, ln aⱼ, ln σⱼ, ln ωⱼ), (..., 2n + 3c): positive by construction; gradients flow.

    Args:
        theta: the vector; what is left after `terms` = n exponentials are c damped cosines.
    """
    cosines = (theta.shape[-1] - 2 * terms) // 3
    gamma, tau = theta[..., : 2 * terms].exp().unflatten(-1, (2, terms)).unbind(-2)
    a, s, w = theta[..., 2 * terms :].exp().unflatten(-1, (3, cosines)).unbind(-2)
    return ExponentialKernel(gamma, tau, gamma.new_zeros(gamma.shape[:-1]), a, s, w)


def logarithms_of(kernel: ExponentialKernel) -> Tensor:
    """The vector of which `kernel_of_logarithms` makes this kernel, (..., 2n + 3c); γ₀ is left out."""
    parts = (kernel.gamma, kernel.tau, kernel.amplitude, kernel.decay, kernel.frequency)
    return torch.cat(parts, -1).log()


def rising(theta: Tensor, terms: int) -> Tensor:
    """Indices that put one such vector in order: times rise, frequencies rise; (2n + 3c,)."""
    cosines = (len(theta) - 2 * terms) // 3
    times = theta[terms : 2 * terms].argsort()
    waves = 2 * terms + theta[len(theta) - cosines :].argsort()
    return torch.cat([times, terms + times, *(waves + k * cosines for k in range(3))])


def _leading(cosines: Tensor | list[tuple[float, float, float]]) -> tuple[int, ...]:
    return tuple(cosines.shape[:-2]) if isinstance(cosines, Tensor) else ()


def _demand(name: str, value: Tensor, holds: bool, what: str) -> None:
    if not holds or not math.isfinite(float(value.sum()) if value.numel() else 0.0):
        raise ValueError(f"{name} must be finite and {what}, got {value.tolist()}")

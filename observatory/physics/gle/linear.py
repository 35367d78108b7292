"""The generalised Langevin equation in a harmonic well: exact at every sampling step, and differentiable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from observatory.numerics.correlate import correlation
from observatory.physics.gle.embedding import generator_matrix
from observatory.physics.gle.estimators import positions_of
from observatory.physics.gle.kernels import ExponentialKernel
from observatory.physics.gle.parameters import Batch, KernelParameters

TAPER = 0.05  # of a trajectory at each end; it widens errors by 3 %


def transition(kernel: ExponentialKernel, mass: Tensor, stiffness: Tensor, dt: float) -> Tensor:
    """F = e^{AΔt} of (x, v, f, ...), each over its standard deviation, in U = kx²/2; (..., d+1, d+1).

    The stationary covariance is 1, the covariance of a step's noise 1 - FFᵀ.
    """
    inner = generator_matrix(kernel, mass)
    w = (stiffness / mass).sqrt().expand(inner.shape[:-2])
    A = torch.nn.functional.pad(inner, (1, 0, 1, 0))
    turn = torch.zeros_like(A)
    turn[..., 0, 1], turn[..., 1, 0] = w, -w
    return torch.linalg.matrix_exp((A + turn) * dt)


def powers(F: Tensor, count: int) -> Tensor:
    """1, F, F², ..., (..., count, d, d), by doubling."""
    found = torch.eye(F.shape[-1], dtype=F.dtype, device=F.device).expand(*F.shape[:-2], 1, -1, -1)
    last = F
    while found.shape[-3] < count:
        found = torch.cat([found, found @ last[..., None, :, :]], -3)
        last = last @ last
    return found[..., :count, :, :]


def spectral_density(F: Tensor, frequency: Tensor) -> Tensor:
    """S(ω) = [(e^{iω} - F)⁻¹(1 - FFᵀ)(e^{-iω} - Fᵀ)⁻¹]_xx of x over its spread; (..., frequencies).

    ω in radians per step: aliasing is contained, and the mean of S over ω is 1. It is a ratio of polynomials
    in σ = |w|² = 4 sin²(ω/2), w = e^{iω} - 1, whose coefficients do not depend on ω (Faddeev and LeVerrier
    for the inverse in w): one small matrix product for all frequencies. In w rather than e^{iω} nothing
    cancels at low frequencies when F is close to 1.
    """
    d = F.shape[-1]
    eye = torch.eye(d, dtype=F.dtype, device=F.device)
    A = F - eye
    rows, coefficients, N = [], [torch.ones_like(F[..., 0, 0])], eye.expand_as(F)
    for k in range(1, d + 1):  # (w - A)⁻¹ = Σ_k w^{d-k} N_k / Σ_k c_k w^{d-k}
        rows.append(N[..., 0, :])
        AN = A @ N
        coefficients.append(-AN.diagonal(dim1=-2, dim2=-1).sum(-1) / k)
        N = AN + coefficients[-1][..., None, None] * eye
    row, c = torch.stack(rows[::-1], -2), torch.stack(coefficients[::-1], -1)  # rising powers of w
    basis = _modulus_basis(d).to(F)
    noise = -(A + A.mT + A @ A.mT)  # 1 - FFᵀ
    numerator = torch.einsum("...kl,klm->...m", row @ noise @ row.mT, basis[:d, :d])
    denominator = torch.einsum("...k,...l,klm->...m", c, c, basis)
    sigma = 4 * torch.sin(frequency / 2).square()
    table = torch.stack([sigma**m for m in range(d + 1)], -1).to(F)
    numerator, denominator = (table @ n[..., None] for n in (numerator, denominator))
    return (numerator / denominator)[..., 0]


@cache
def _modulus_basis(d: int) -> Tensor:
    """Re(w^k w̄^l) as a polynomial in σ = |w|² where |1 + w| = 1: coefficients of σ^m, (d+1, d+1, d+1).

    w + w̄ = -σ, hence T_n = w^n + w̄^n obeys T_n = -σ(T_{n-1} + T_{n-2}) with T_0 = 2, T_1 = -σ.
    """
    T = torch.zeros(d + 1, d + 1, dtype=torch.float64)
    T[0, 0] = 2
    T[1, 1] = -1
    for n in range(2, d + 1):
        T[n, 1:] = -(T[n - 1, :-1] + T[n - 2, :-1])
    basis = torch.zeros(d + 1, d + 1, d + 1, dtype=torch.float64)
    for k in range(d + 1):
        for m in range(d + 1):
            low = min(k, m)
            basis[k, m, low:] = T[abs(k - m), : d + 1 - low] / 2
    return basis


class HarmonicGLE(KernelParameters):
    """m ẍ = -kx - ∫Γ(s)ẋ(t-s)ds + F with trainable ln m, ln γᵢ, ln τᵢ, observed at steps Δt.

    The stiffness is kT over the variance of the data. The sampled process is exactly a linear one,
    z ← Fz + noise, so that no error of discretisation exists whatever Δt is.
    `loss="whittle"` is the negative logarithm of the likelihood per sample, Σ[ln S(ω) + I(ω)/S(ω)]/N over
    0 < ω < π (Whittle, Ark. Mat. 2, 423 (1953)); `loss="correlation"` the mean squared mismatch of C_xx and
    of the half-step C_vv, each over its value at 0.

    Args:
        dt: Δt.
        kT: thermal energy.
        mass: initial m.
        gamma: initial γᵢ.
        tau: initial τᵢ.
        loss: which.
        lags: of the correlation loss.
        cosines: initial (a, σ, ω) of damped cosines.
    """

    def __init__(
        self,
        dt: float,
        kT: float = 1.0,
        mass: float = 1.0,
        gamma: tuple[float, ...] = (1.0,),
        tau: tuple[float, ...] = (1.0,),
        loss: str = "whittle",
        lags: int = 200,
        cosines: Sequence[tuple[float, float, float]] = (),
    ) -> None:
        super().__init__(mass, gamma, tau, cosines)
        if loss not in ("whittle", "correlation") or min(dt, kT) <= 0 or lags < 2:
            given = f"loss={loss!r}, dt={dt:g}, kT={kT:g}, lags={lags}"
            raise ValueError(f"loss is 'whittle' or 'correlation', the numbers are positive; got {given}")
        self.dt, self.kT, self.loss, self.lags = dt, kT, loss, lags

    def correlations(self, stiffness: Tensor) -> tuple[Tensor, Tensor]:
        """C_xx(iΔt) and C_vv of half-step velocities, (lags,), exact."""
        F = transition(self.kernel, self.mass, stiffness, self.dt)
        xx = self.kT / stiffness * powers(F, self.lags + 1)[..., 0, 0]
        return xx[:-1], half_step_velocity_correlation(xx, self.dt)

    def training_loss(self, batch: Batch) -> Tensor:
        """Of positions (P, N) or (P, N, 1)."""
        x = positions_of(batch)
        x = x - x.mean()
        stiffness = self.kT / x.square().mean()
        if self.loss == "whittle":
            F = transition(self.kernel, self.mass, stiffness, self.dt)
            frequency, power = periodogram(x)
            density = self.kT / stiffness * spectral_density(F, frequency)
            return (density.log() + power / density).mean()
        model = self.correlations(stiffness)
        v = x.diff() / self.dt
        data = tuple(correlation(s, lags=self.lags).mean(0) for s in (x, v))
        return sum(
            (((c - d) / d[0]).square().mean() for c, d in zip(model, data, strict=True)),
            torch.zeros((), dtype=torch.float64, device=x.device),
        )


def half_step_velocity_correlation(xx: Tensor, dt: float) -> Tensor:
    """C_vv(i) = -(C_xx(i+1) - 2C_xx(i) + C_xx(|i-1|))/Δt² of (x_{i+1} - x_i)/Δt, (..., n) of (..., n + 1)."""
    before = torch.cat([xx[..., 1:2], xx[..., :-2]], -1)
    return (2 * xx[..., :-1] - xx[..., 1:] - before) / dt**2


def periodogram(x: Tensor) -> tuple[Tensor, Tensor]:
    """Frequencies 0 < ω < π in radians per step and I(ω) = |Σ w_j x_j e^{-iωj}|²/Σw², mean over lanes (P, N).

    The taper w rises and falls as a cosine over a twentieth at each end. Without it the jump from the last to
    the first position, ⟨Δx²⟩/(4N sin²(ω/2)) in I, buries the spectrum of positions that are recorded often,
    which falls as ω⁻⁴ and faster. (Tukey 1967; Percival, Walden, Spectral Analysis, 1993, §3.10, §6.5.)
    """
    n = x.shape[-1]
    inner = slice(1, (n - 1) // 2 + 1)
    place = (torch.arange(n, dtype=x.dtype, device=x.device) + 0.5) / n
    taper = torch.sin(math.pi / 2 * (torch.minimum(place, 1 - place) / TAPER).clamp_max(1)).square()
    power = torch.fft.rfft(x * taper).abs().square()[..., inner].mean(0) / taper.square().sum()
    frequency = 2 * math.pi / n * torch.arange(n // 2 + 1, dtype=x.dtype, device=x.device)[inner]
    return frequency, power

"""Figures of what an extraction found and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from observatory.physics.gle.direct_fit import KernelFit
from observatory.physics.gle.figures import BAND, FIT, OURS, TRUTH, draw_free_energy, draw_velocities
from observatory.physics.gle.kernels import ExponentialKernel
from observatory.physics.gle.result import MemoryKernel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_running_frictions(
    kernels: Sequence[tuple[str, MemoryKernel]], truth: ExponentialKernel | None = None
) -> Figure:
    """G(t) of several extractions, the first with its band, and the known one."""
    figure, axis = _single(7.2, 4.0)
    shades = torch.linspace(1.0, 0.45, len(kernels)).tolist()
    for (label, kernel), alpha in zip(kernels, shades, strict=True):
        axis.plot(kernel.t, kernel.G, color=OURS, alpha=alpha, lw=1.4, label=label)
    first = kernels[0][1]
    if first.G_band is not None:
        axis.fill_between(first.t, first.G_band.low, first.G_band.high, color=BAND, lw=0, zorder=0)
    if truth is not None:
        axis.plot(first.t, truth.integral(first.t), color=TRUTH, ls="--", lw=1.2, label="known")
    axis.set(xlabel="time t", ylabel="G(t) = ∫Γ ds", xlim=(0, float(first.t[-1])), ylim=(0, None))
    axis.legend(frameon=False, ncols=2)
    return figure


def draw_kernels(kernel: MemoryKernel, fit: KernelFit, truth: ExponentialKernel | None = None) -> Figure:
    """Γ(t) over ln t, linear and logarithmic, with the fit through G."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    for axis, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
        t = kernel.t[1:]
        if kernel.Gamma_band is not None:
            low = kernel.Gamma_band.low[1:]
            low = low if scale == "linear" else low.clamp_min(1e-12)
            axis.fill_between(t, low, kernel.Gamma_band.high[1:], color="0.88", lw=0)
        axis.plot(t, kernel.Gamma[1:], ".", ms=3, color=OURS, label="from the data")
        axis.plot(t, fit.kernel.at(t), color=FIT, lw=1.2, label=fit.form)
        if truth is not None:
            axis.plot(t, truth.at(t), color=TRUTH, ls="--", lw=1.2, label="known")
        axis.set(xscale="log", yscale=scale, xlabel="time t", ylabel="Γ(t)")
        axis.spines[["top", "right"]].set_visible(False)
        if scale == "linear":
            axis.axhline(0, color="0.8", lw=0.8)
            axis.legend(frameon=False)
        else:
            top = float(kernel.Gamma[1:].max())
            axis.set_ylim(top * 1e-4, 2 * top)
    return figure


def draw_surroundings(kernel: MemoryKernel, fit: ExponentialKernel) -> Figure:
    """U(x)/kT, and C_vv(t)/C_vv(0) of data and fit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    energy, velocity = figure.subplots(1, 2)
    draw_free_energy(energy, kernel)
    draw_velocities(velocity, kernel, fit)
    for axis in (energy, velocity):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def draw_equation(kernel: MemoryKernel) -> Figure:
    """The residual of the equation with the kernel put back."""
    figure, axis = _single(5.6, 3.4)
    axis.plot(kernel.t, 100 * kernel.residual, color=OURS, lw=1.2)
    axis.axhline(0, color="0.8", lw=0.8)
    axis.set(xlabel="time t", ylabel="residual (%)")
    return figure


def draw_random_force(kernel: MemoryKernel, force: Tensor) -> Figure:
    """⟨F(0)F(t)⟩/kT against Γ(t)."""
    figure, axis = _single(5.6, 3.4)
    n = min(len(force), len(kernel.t))
    axis.plot(kernel.t[1:n], force[1:n], ".", ms=4, color=FIT, label="⟨F(0)F(t)⟩/kT")
    axis.plot(kernel.t[1:n], kernel.Gamma[1:n], color=OURS, lw=1.4, label="Γ(t)")
    axis.set(xlabel="time t", ylabel="kernel")
    axis.legend(frameon=False)
    return figure


def draw_matched(dt: float, data: Tensor, model: Tensor) -> Figure:
    """C_vv, C_xx and C_xU' of data and of the simulation that fits them, each (3, lags)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.0), layout="constrained")
    t = dt * torch.arange(data.shape[-1])
    names = ("C_vv(t)/C_vv(0)", "C_xx(t)/C_xx(0)", "C_xU'(t)/C_xU'(0)")
    for axis, name, ours, theirs in zip(figure.subplots(1, 3), names, model, data, strict=True):
        axis.plot(t, theirs / theirs[0], "o", ms=3, color=OURS, label="data")
        axis.plot(t, ours / theirs[0], color=FIT, lw=1.2, label="simulation")
        axis.axhline(0, color="0.8", lw=0.8)
        axis.set(xlabel="time t", ylabel=name)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    return figure


def _single(width: float, height: float):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis

"""Figures of memory kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from observatory.physics.gle.inversion import velocity_correlation
from observatory.physics.gle.kernels import ExponentialKernel
from observatory.physics.gle.potentials import FreeEnergy
from observatory.physics.gle.result import MemoryKernel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, TRUTH, BAND, FIT = "#4c72b0", "#222222", "#c9d4e8", "#c44e52"


def overview(
    kernel: MemoryKernel, truth: tuple[Tensor, Tensor] | None = None, fit: ExponentialKernel | None = None
) -> Figure:
    """Running friction with its band, Γ on a logarithmic axis of time, C_vv, and U.

    Args:
        kernel: what was extracted.
        truth: G and Γ at the same lags, where they are known.
        fit: a kernel whose velocity correlation is drawn beside that of the data.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    (running, memory), (velocity, energy) = figure.subplots(2, 2)
    draw_running_friction(running, kernel, None if truth is None else truth[0])
    memory.semilogx(kernel.t[1:], kernel.Gamma[1:], color=OURS, lw=1.2)
    if truth is not None:
        memory.semilogx(kernel.t[1:], truth[1][1:], color=TRUTH, ls="--", lw=1)
    if kernel.Gamma_band is not None:
        band = kernel.Gamma_band
        memory.fill_between(kernel.t[1:], band.low[1:], band.high[1:], color=BAND, lw=0, zorder=0)
    memory.axhline(0, color="0.7", lw=0.8)
    memory.set(xlabel="time t", ylabel="memory kernel Γ(t)")
    draw_velocities(velocity, kernel, fit)
    draw_free_energy(energy, kernel)
    return figure


def draw_velocities(axis: Axes, kernel: MemoryKernel, fit: ExponentialKernel | None = None) -> None:
    """C_vv(t)/C_vv(0) of the data, and what the equation makes of a fitted kernel and their C_xU'."""
    vv = kernel.correlations["vv"]
    axis.plot(kernel.t, vv / vv[0], color=OURS, lw=1.4, label="data")
    if fit is not None and "xf" in kernel.correlations:
        xf, mass = kernel.correlations["xf"], kernel.apparent_mass
        model = velocity_correlation(fit.integral(kernel.t), xf, mass, kernel.dt)
        axis.plot(kernel.t, model / vv[0], color=FIT, lw=1, ls="--", label="of the fitted kernel")
        axis.legend(frameon=False)
    axis.axhline(0, color="0.8", lw=0.8)
    axis.set(xlabel="time t", ylabel="C_vv(t)/C_vv(0)")


def draw_running_friction(axis: Axes, kernel: MemoryKernel, truth: Tensor | None = None) -> None:
    """G(t) and its plateau, the friction."""
    axis.plot(kernel.t, kernel.G, color=OURS, lw=1.4, label="from the data")
    if kernel.G_band is not None:
        axis.fill_between(kernel.t, kernel.G_band.low, kernel.G_band.high, color=BAND, lw=0, zorder=0)
    if truth is not None:
        axis.plot(kernel.t, truth, color=TRUTH, ls="--", lw=1, label="known")
        axis.legend(frameon=False)
    axis.set(xlabel="time t", ylabel="running friction G(t)", ylim=(0, None))


def draw_free_energy(axis: Axes, kernel: MemoryKernel) -> None:
    """U in units of kT where the data are."""
    potential = kernel.free_energy
    if isinstance(potential, FreeEnergy):
        x, U = potential.x, potential.U
    else:
        x = torch.linspace(*kernel.reach, 400, dtype=torch.float64)
        U = potential.energy(x)
    axis.plot(x, U / kernel.kT, color=OURS, lw=1.4)
    axis.set(xlabel="position x", ylabel="free energy U/kT")

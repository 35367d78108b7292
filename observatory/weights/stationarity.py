"""Has the run come to rest? Tests that need nothing but the trajectory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from observatory.numerics.statistics import fit_line
from observatory.weights.trajectory import column_blocks


def dissipation_ratio(
    work: Tensor, kinetic: Tensor, *, learning_rate: float, momentum: float = 0.0
) -> Tensor:
    """r_FDR = ⟨θ·g⟩/((η/2)(1 + β)⟨‖v‖²⟩), 1 for stationary ‖θ‖²: the fluctuation-dissipation relation of SGD.

    Exact at any learning rate, for any part of the weights and with θ measured from any fixed point; a drift
    makes it smaller than 1. (Yaida 2018, arXiv:1810.00004.)

    Args:
        work: ⟨(θ - θ_ref)·g⟩, θ and gradient (with coupled weight decay) before the update, (...).
        kinetic: ⟨‖v‖²⟩, velocity after the update, (...).
        learning_rate: η.
        momentum: β.
    """
    return work / (learning_rate / 2 * (1 + momentum) * kinetic)


def dissipation_of_snapshots(rows: Tensor, *, learning_rate: float, momentum: float = 0.0) -> Tensor:
    """r_FDR of snapshots of every step, from them alone; θ_ref is their mean.

    v_{t+1} = (θ_t - θ_{t+1})/η and g_t = v_{t+1} - βv_t are differences of snapshots, so that ⟨θ·g⟩ and
    ⟨‖v‖²⟩ are sums of overlaps θ_t·θ_t and θ_t·θ_{t+1}: recording costs nothing more, and weight decay
    is included.

    Args:
        rows: (T, P), T ≥ 4, one step apart.

    Returns:
        Scalar; averages over t = 2 ... T - 1.
    """
    size = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)  # ‖θ_t‖²
    overlap = torch.zeros(len(rows) - 1, dtype=torch.float64, device=rows.device)  # θ_t·θ_{t+1}
    for block in column_blocks(rows):
        size += block.square().sum(1)
        overlap += (block[:-1] * block[1:]).sum(1)
    kinetic = (size[1:-1] + size[2:] - 2 * overlap[1:]) / learning_rate**2  # ‖v_{t+1}‖²
    ahead, behind = size[1:-1] - overlap[1:], overlap[:-1] - size[1:-1]  # ηθ_t·v_{t+1}, ηθ_t·v_t
    work = (ahead - momentum * behind) / learning_rate
    return dissipation_ratio(work.mean(), kinetic.mean(), learning_rate=learning_rate, momentum=momentum)


def half_window_ratio(projections: Tensor) -> Tensor:
    """Variance in the second half of the window over that in the first, for each component; 1 at rest.

    Args:
        projections: θ_i(t), (..., T, k).

    Returns:
        Shape (..., k); NaN for fewer than four snapshots.
    """
    half = projections.shape[-2] // 2
    if half < 2:
        return torch.full_like(projections[..., 0, :], torch.nan)
    return projections[..., -half:, :].var(-2) / projections[..., :half, :].var(-2)


def geweke_z(series: Tensor, correlation_time: Tensor) -> Tensor:
    """Difference of the means of the first 10 % and the last 50 %, in standard errors: beyond ±3 a drift.

    (Geweke 1992, in: Bayesian Statistics 4.)

    Args:
        series: (..., T).
        correlation_time: τ_int of the series in units of its spacing, (...): T/(2τ) samples count as
            independent.
    """
    length = series.shape[-1]
    early, late = series[..., : max(2, length // 10)], series[..., length // 2 :]
    variance = series.var(-1) * 2 * correlation_time.clamp_min(0.5)
    error = (variance * (1 / early.shape[-1] + 1 / late.shape[-1])).sqrt()
    return (early.mean(-1) - late.mean(-1)) / error


class StationarityMonitor:
    """Watches a run step by step until it is at rest: r_FDR ∈ [0.9, 1.1] over a window, and no slope of
    the loss.

    The velocity is what the weights really did, v_t = (θ_{t-1} - θ_t)/η, whatever clipping or precision
    did to the gradients; positions are measured from the weights at the start of the window. Windows
    follow one another.

    Args:
        window: steps.
        band: allowed distance of r_FDR from 1.
        probes: how often per window the loss is evaluated.
    """

    def __init__(self, window: int, *, band: float = 0.1, probes: int = 32) -> None:
        if window < 8:
            raise ValueError(f"a window of {window} steps cannot show a run at rest; use at least 8")
        self.window, self.band = window, band
        self.spacing = max(1, window // probes)
        self.ratio = math.nan  # of the last complete window
        self._steps = 0
        self._reset()

    def _reset(self) -> None:
        self._origin: Tensor | None = None
        self._position: Tensor | None = None
        self._velocity: Tensor | None = None
        self._work: list[Tensor] = []
        self._kinetic: list[Tensor] = []
        self._losses: list[tuple[int, Tensor]] = []

    def update(
        self, weights: Tensor, loss: Callable[[], Tensor], *, learning_rate: float, momentum: float
    ) -> bool:
        """Take in θ after a step; whether a window of rest has just been completed.

        Args:
            weights: (P,); copied.
            loss: called when a value of the loss is needed.
        """
        if self._origin is None:
            self._origin = weights.clone()
        elif self._origin.device != weights.device:  # from a checkpoint
            self._move(weights.device)
        position = weights - self._origin
        if self._position is not None:
            velocity = (self._position - position) / learning_rate
            if self._velocity is not None:
                gradient = velocity - momentum * self._velocity
                self._work.append(torch.dot(self._position, gradient))
                self._kinetic.append(torch.dot(velocity, velocity))
            self._velocity = velocity
        self._position = position
        if self._steps % self.spacing == 0:
            self._losses.append((self._steps, loss()))
        self._steps += 1
        return len(self._work) == self.window and self._complete(learning_rate, momentum)

    def _move(self, device: torch.device) -> None:
        for name in ("_origin", "_position", "_velocity"):
            tensor = getattr(self, name)
            setattr(self, name, None if tensor is None else tensor.to(device))
        self._work, self._kinetic = ([x.to(device) for x in kept] for kept in (self._work, self._kinetic))
        self._losses = [(step, x.to(device)) for step, x in self._losses]

    def state_dict(self) -> dict[str, Any]:
        """The window that has begun, for a resumed run."""
        return {
            "steps": self._steps,
            "ratio": self.ratio,
            **{name: getattr(self, f"_{name}") for name in ("origin", "position", "velocity")},
            "work": list(self._work),
            "kinetic": list(self._kinetic),
            "losses": list(self._losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps, self.ratio = state["steps"], state["ratio"]
        self._origin, self._position, self._velocity = (
            state[name] for name in ("origin", "position", "velocity")
        )
        self._work, self._kinetic = list(state["work"]), list(state["kinetic"])
        self._losses = list(state["losses"])

    def _complete(self, learning_rate: float, momentum: float) -> bool:
        work, kinetic = torch.stack(self._work).double().mean(), torch.stack(self._kinetic).double().mean()
        self.ratio = float(dissipation_ratio(work, kinetic, learning_rate=learning_rate, momentum=momentum))
        steps = torch.tensor([step for step, _ in self._losses], dtype=torch.float64)
        line = fit_line(steps, torch.stack([value for _, value in self._losses]).double().cpu())
        level = abs(float(line.slope)) < 2 * float(line.slope_error)
        self._reset()
        return abs(self.ratio - 1) <= self.band and level

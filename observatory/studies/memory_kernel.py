"""The memory kernel of recorded trajectories, beside a known one where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from observatory.physics.gle.direct_fit import KernelFit
from observatory.physics.gle.kernels import ExponentialKernel, exponential_kernel
from observatory.physics.gle.memory_figures import (
    draw_equation,
    draw_kernels,
    draw_random_force,
    draw_running_frictions,
    draw_surroundings,
)
from observatory.physics.gle.recorded import recorded_fit, recorded_kernel
from observatory.physics.gle.result import MemoryKernel as Extracted
from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.studies.study import Conclusion, FinishedRun, Study

THIN = "model.init_args.method.init_args.thin"
SEED = "data.init_args.seed"


@dataclass(frozen=True)
class _Extraction:
    """What one run found."""

    label: str
    kernel: Extracted
    fit: KernelFit
    force: Tensor | None  # autocorrelation over kT
    kurtosis: float


class MemoryKernel(Study):
    """Friction, memory time, mass and free energy from positions alone, and whether the equation holds.

    Runs differ in the seed of simulated trajectories, or in how far recorded ones are thinned. (Tepper,
    Dalton, Netz, J. Chem. Theory Comput. 20, 3061 (2024), arXiv:2401.09249.)

    Args:
        gamma: known γᵢ, if any.
        tau: known τᵢ.
        mass: known m.
    """

    title = "Memory kernel of recorded trajectories"

    def __init__(
        self, gamma: Sequence[float] = (), tau: Sequence[float] = (), mass: float | None = None
    ) -> None:
        self.truth = exponential_kernel(tuple(gamma), tuple(tau)) if gamma else None
        self.mass = mass

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        if stray := {key for point in points for key in point} - {THIN, SEED, _lags_of(THIN)}:
            raise ValueError(
                f"the runs of this study differ in {SEED} or {THIN} (with its lags), "
                f"not in {', '.join(sorted(stray))}"
            )

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        found = [_read(run) for run in runs]
        first = found[0]
        verdict = Section(
            "Verdict",
            findings=[*self._numbers(found), *_agreement(found), *_checks(first)],
            panels=[self._panel_of_friction(found)],
            header=["run", "friction", "of the fit", "memory time", "mass", "apparent mass", "⟨xU'⟩/kT"],
            rows=[_row(one) for one in found],
        )
        return Conclusion([verdict, *_details(first, self.truth)])

    def _numbers(self, found: Sequence[_Extraction]) -> list[Finding]:
        """Friction first, memory time second, mass last: the order in which data know them."""
        first = found[0]
        known = self.truth
        if found[-1].kernel.dt != first.kernel.dt:  # the same data thinned: their spread is no uncertainty
            found = found[:1]
        plateau = torch.stack([one.kernel.friction for one in found])
        tau = torch.stack([one.fit.kernel.memory_time() for one in found])
        mass = torch.stack([one.kernel.mass for one in found])
        lower = " at least: G still rises at the longest lag" if first.kernel.still_rising else ""
        sentences = [
            f"Friction: {_spread(plateau, first)}{lower}{_against(known.friction() if known else None)}.",
            f"Memory time of {first.fit.form} through G: {_spread(tau)}"
            f"{_against(known.memory_time() if known else None)}.",
            f"Mass kT/⟨v²⟩: {_spread(mass)}{_against(self.mass)}.",
        ]
        if known is not None:
            G = torch.stack([one.kernel.G for one in found]).mean(0)
            worst = (G - known.integral(first.kernel.t)).abs().max() / known.friction()
            sentences.append(
                f"The mean of {len(found)} extracted G(t) lies within {float(worst):.1%} of the known "
                "friction of the known G(t) at every lag."
            )
        return [Finding(text) for text in sentences]

    def _panel_of_friction(self, found: Sequence[_Extraction]) -> Panel:
        figure = draw_running_frictions([(one.label, one.kernel) for one in found], self.truth)
        known = " Dashed: the kernel with which the data were made." if self.truth else ""
        return Panel(
            "Running integral of the kernel",
            figure,
            "G(t) = ∫Γ ds over time; its plateau is the friction. The band is the 95 % interval of the first "
            "run over resampled pieces of the data." + known,
        )


def _every(thin: int) -> str:
    """The n-th point, in words."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(thin % 10 if thin % 100 not in (11, 12, 13) else 0, "th")
    return "every point" if thin == 1 else f"every {thin}{ending} point"


def _lags_of(key: str) -> str:
    return key.removesuffix("thin") + "lags"


def _read(run: FinishedRun) -> _Extraction:
    state = run.state("method")["_extra_state"]
    thin = run.point.get(THIN)
    label = run.name if thin is None else _every(int(thin))
    label = f"seed {run.point[SEED]}" if SEED in run.point else label
    force = state.get("force_autocorrelation")
    return _Extraction(
        label,
        recorded_kernel(state),
        recorded_fit(state),
        force,
        float(state.get("force_kurtosis", torch.nan)),
    )


def _spread(values: Tensor, one: _Extraction | None = None) -> str:
    """Mean and standard error over runs; of a single one its own band."""
    if len(values) > 1:
        return f"{float(values.mean()):.4g} ± {float(values.std() / len(values) ** 0.5):.2g}"
    band = one.kernel.G_band if one is not None else None
    if band is None:
        return f"{float(values[0]):.4g}"
    return f"{float(values[0]):.4g} (95 % {float(band.low[-1]):.3g} to {float(band.high[-1]):.3g})"


def _against(known: Tensor | float | None) -> str:
    return "" if known is None else f" (known {float(known):.4g})"


def _agreement(found: Sequence[_Extraction]) -> list[Finding]:
    """Whether thinning changes G: the sign that Δt resolves the memory or not."""
    if len(found) < 2 or found[0].kernel.dt == found[-1].kernel.dt:
        return []
    fine, coarse = found[0].kernel, found[1].kernel
    every = round(coarse.dt / fine.dt)
    common = min(len(coarse.G), (len(fine.G) - 1) // every + 1)
    change = float(
        (coarse.G[1:common] - fine.G[every::every][: common - 1]).abs().max() / fine.friction.abs()
    )
    band = fine.G_band
    noise = float((band.high - band.low).max() / 2 / fine.friction.abs()) if band is not None else 0.0
    resolved = change < max(noise, 0.05)
    text = (
        f"Taking {_every(every)} changes G(t) by at most {change:.1%} of the friction, where the data "
        f"leave it open by {noise:.1%}: "
    )
    end = (
        "the time step resolves the memory."
        if resolved
        else "the time step does not resolve the memory; fit a simulated equation (SimulationFit) instead."
    )
    return [Finding(text + end, "result" if resolved else "warning")]


def _checks(one: _Extraction) -> list[Finding]:
    """Virial, fluctuation-dissipation theorem, Gaussianity, admissibility."""
    kernel = one.kernel
    ratio = float(kernel.virial_ratio)
    found = [
        Finding(f"⟨xU'⟩/kT = {ratio:.3f}.", "note" if abs(ratio - 1) < 0.05 else "warning"),
        Finding(
            f"Γ put back into the equation of C_vv leaves {float(kernel.residual.abs().max()):.2%} of its "
            f"largest term; {one.fit.form} fit G to {one.fit.residual:.2%}, and some "
            f"random force has that kernel: {'yes' if bool(one.fit.kernel.admissible()) else 'no'}.",
            "note",
        ),
    ]
    if one.force is not None:
        n = min(len(one.force), len(kernel.Gamma))
        off = (one.force[2:n] - kernel.Gamma[2:n]).square().mean().sqrt() / kernel.Gamma[0].abs()
        text = (
            f"Fluctuation-dissipation: ⟨F(0)F(t)⟩/kT of the random force follows Γ(t) with a scatter of "
            f"{float(off):.1%} of Γ(0); its excess kurtosis is {one.kurtosis:.3f}."
        )
        found.append(Finding(text))
    return found


def _row(one: _Extraction) -> list[str]:
    kernel, fit = one.kernel, one.fit.kernel
    seen = bool(fit.tau[-1] < kernel.t[-1])  # a longer time is a line through the window, not a memory
    return [
        one.label,
        f"{float(kernel.friction):.4g}",
        f"{float(fit.friction()):.4g}" if seen else "beyond the lags",
        f"{float(fit.memory_time()):.4g}" if seen else "beyond the lags",
        f"{float(kernel.mass):.4g}",
        f"{float(kernel.apparent_mass):.4g}",
        f"{float(kernel.virial_ratio):.3f}",
    ]


def _details(one: _Extraction, truth: ExponentialKernel | None) -> list[Section]:
    kernel = one.kernel
    panels = [
        Panel(
            "Memory kernel",
            draw_kernels(kernel, one.fit, truth),
            "Γ(t) on a logarithmic axis of time, and both axes logarithmic; grey band: 95 %.",
        ),
        Panel(
            "Free energy and velocities",
            draw_surroundings(kernel, one.fit.kernel),
            "Left: -kT ln p(x) of the data. Right: velocity correlation, whose start gives the mass; dashed, "
            "what the equation of motion makes of the fitted kernel.",
        ),
        Panel(
            "Does the kernel explain the data?",
            draw_equation(kernel),
            "The equation of motion of C_vv, once integrated, with Γ put back: what is left over, in units "
            "of its largest term.",
        ),
    ]
    if one.force is not None:
        panels.append(
            Panel(
                "Fluctuation-dissipation theorem",
                draw_random_force(kernel, one.force),
                "Points: autocorrelation of F = m ẍ + U' + ∫Γẋ, computed from the trajectory, over kT. "
                "Line: Γ(t).",
            )
        )
    return [Section(f"The kernel, {one.label}", panels=panels)]

"""How the exponent of the variance-flatness relation depends on range, window, basis and what is swept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from observatory.records import Finding, Panel
from observatory.report import Section
from observatory.studies.study import Conclusion, FinishedRun, Study

MATTERS = 0.5  # a difference of exponents that is worth a warning


@dataclass(frozen=True)
class _Exponents:
    """ψ of one run, for every choice that was recorded."""

    name: str
    choices: tuple[str, ...]
    exponent: np.ndarray
    error: np.ndarray
    correlation: np.ndarray
    scalars: Mapping[str, float]  # of the window, by quantity


class FluctuationChoices(Study):
    """The exponent ψ of σ² ∝ F^(-ψ) side by side for all runs and all choices of range, window and basis.

    An exponent that changes with a choice of the analysis is no property of the network. (Feng, Tu 2021, PNAS
    118 e2015617118; Xiong et al. 2022, arXiv:2207.04932.)

    Args:
        instrument: name of the one that recorded the fluctuations.
    """

    title = "Variance and flatness: what the exponent depends on"

    def __init__(self, instrument: str = "weights") -> None:
        self.instrument = instrument

    def check(self, points: Sequence[Mapping[str, Any]]) -> None:
        if len(points) < 2:
            raise ValueError("the study compares runs: sweep at least two values, such as of replacement")

    def conclude(self, runs: Sequence[FinishedRun]) -> Conclusion:
        found = [self._read(run) for run in runs]
        header = ["choice", *(f"{one.name}: ψ (r)" for one in found)]
        section = Section(
            "Verdict",
            findings=[_dependence(found), *_between(found), *(_of_run(one) for one in found)],
            panels=[_panel(found)],
            header=header,
            rows=_rows(found),
        )
        return Conclusion([section])

    def _read(self, run: FinishedRun) -> _Exponents:
        record = run.record.instrument(self.instrument)
        names = record["variant_exponent"].coordinates["variant"]
        values = {
            name: np.asarray(record[f"variant_{name}"].values[-1])
            for name in ("exponent", "error", "correlation")
        }
        scalars = {name: float(record[name].values[-1]) for name in record if record[name].values.ndim == 1}
        return _Exponents(run.name, tuple(names), scalars=scalars, **values)


def _dependence(found: Sequence[_Exponents]) -> Finding:
    known = [
        (float(value), f"{choice}, {one.name}")
        for one in found
        for choice, value in zip(one.choices, one.exponent, strict=True)
        if math.isfinite(value)
    ]
    if len(known) < 2:
        return Finding("No exponents to compare: too few directions have a flatness.", "warning")
    (low, at_low), (high, at_high) = min(known), max(known)
    text = f"ψ ranges from {low:.2f} ({at_low}) to {high:.2f} ({at_high})"
    if high - low > MATTERS:
        return Finding(f"{text}: one number for the network does not exist.", "warning")
    return Finding(f"{text}: it does not depend on these choices.")


def _between(found: Sequence[_Exponents]) -> list[Finding]:
    """What is swept, at the choice of analysis where it shows most beside the scatter about the lines."""
    exponent, error = (np.stack([getattr(one, name) for one in found]) for name in ("exponent", "error"))
    complete = np.isfinite(exponent).all(0) & np.isfinite(error).all(0)
    if not complete.any():
        return []
    low, high = exponent.argmin(0), exponent.argmax(0)
    gap = np.ptp(exponent, 0)
    noise = np.hypot(*(np.take_along_axis(error, row[None], 0)[0] for row in (low, high)))
    most = int(np.where(complete, gap / noise, -math.inf).argmax())
    at = f"{gap[most]:.2f} ± {noise[most]:.2f} for {found[0].choices[most]}"
    who = f"{found[high[most]].name} above {found[low[most]].name}"
    if gap[most] < 3 * noise[most]:
        return [Finding(f"ψ is the same in all runs within its errors; it differs most by {at} ({who}).")]
    among = int((gap[complete] >= 3 * noise[complete]).sum())
    return [
        Finding(
            f"The runs differ: ψ by {at} ({who}), and by more than three standard errors for {among} of "
            f"{int(complete.sum())} choices of the analysis."
        )
    ]


def _of_run(one: _Exponents) -> Finding:
    v = one.scalars
    if not math.isfinite(v["exponent"]):
        return Finding(f"{one.name}: no exponent.", "warning")
    return Finding(
        f"{one.name}: ψ = {v['exponent']:.2f} (95 % of resampled windows {v['exponent_low']:.2f} to "
        f"{v['exponent_high']:.2f}) over components {v['first_rank']:.0f} to {v['last_rank']:.0f}, r = "
        f"{v['correlation']:.2f}; loss at the mean weights {v['loss_at_mean']:.2g}, first component "
        f"{v['top_variance'] / v['total_variance']:.0%} of the variance.",
        "result" if abs(v["correlation"]) > 0.9 else "note",
    )


def _rows(found: Sequence[_Exponents]) -> list[list[str]]:
    def told(one: _Exponents, k: int) -> str:
        if not math.isfinite(one.exponent[k]):
            return "none"
        return f"{one.exponent[k]:.2f} ± {one.error[k]:.2f} ({one.correlation[k]:.2f})"

    return [[choice, *(told(one, k) for one in found)] for k, choice in enumerate(found[0].choices)]


def _panel(found: Sequence[_Exponents]) -> Panel:
    from matplotlib.figure import Figure

    choices = found[0].choices
    figure = Figure(figsize=(7.0, 1.2 + 0.4 * len(choices)), layout="constrained")
    axis = figure.subplots()
    place = np.arange(len(choices))[::-1]
    for k, one in enumerate(found):
        shift = 0.12 * (k - (len(found) - 1) / 2)
        axis.errorbar(one.exponent, place - shift, xerr=one.error, fmt="o", ms=4, label=one.name)
    axis.axvline(0, color="0.7", lw=0.8)
    for x, text in ((-2, "equilibrium"), (4, "Feng and Tu")):
        axis.axvline(x, color="0.5", ls=":", lw=1)
        axis.annotate(text, (x, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
    axis.set_yticks(place, list(choices))
    axis.set_xlabel("exponent ψ ± standard error")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, framealpha=1, edgecolor="none")
    return Panel(
        "The exponent by choice",
        figure,
        "ψ of the same windows for other ranges of components, for each half of the window, after removing a "
        "linear trend, and along the leading eigenvectors of the Hessian. Dotted: a Boltzmann equilibrium, "
        "and the value that Feng and Tu report.",
    )

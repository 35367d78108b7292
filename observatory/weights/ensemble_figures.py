"""Figures and sentences of ensembles of linear networks against their closed forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from observatory.records import Finding, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from observatory.records import Run

ALARM = 4.0  # standard errors beyond which a mean contradicts an exact formula
Values = Mapping[str, NDArray]


def _last(run: Run) -> Values | None:
    """What was seen last; None before any average."""
    if "online" not in run or not len(run["online"]) or not np.isfinite(run["online"].values[-1]).all():
        return None
    return {name: np.asarray(run[name].values[-1]) for name in run if len(run[name])}


def panels(run: Run) -> list[Panel]:
    """All figures of a record."""
    values = _last(run)
    if values is None:
        return []
    return [_two_layers(values), _one_layer(values), _finite_set(values), _gauge(run)]


def sentences(run: Run) -> list[Finding]:
    """How well the runs agree with theory, in standard errors of the runs."""
    v = _last(run)
    if v is None:
        return [Finding("Too few steps for an average.", "warning")]
    worst = float(np.max(np.abs(v["online"] - v["online_exact"]) / v["online_error"]))
    miss = float(np.max(np.abs(v["online"] / v["online_exact"] - 1)))
    naive = v["online"] / v["online_naive"]
    found = [
        _judged(
            f"One layer, fresh data: the variances agree with the exact ones to {miss:.2%} ({worst:.1f} "
            f"standard errors at most); the isotropic ηs²/(2S) is {naive.min():.2f} to {naive.max():.2f} "
            f"times too small.",
            worst < ALARM,
        )
    ]
    scale = np.linalg.norm(v["finite_exact"])
    misses = {
        k: float(np.linalg.norm(v[f"finite_{k}"] - v["finite"]) / scale)
        for k in ("exact", "additive", "continuum")
    }
    noise = float(np.linalg.norm(v["finite_error"]) / scale)
    found.append(
        _judged(
            f"One layer, few examples: the covariance is the exact one to {misses['exact']:.2%} (its "
            f"standard error is {noise:.2%}); additive noise misses it by {misses['additive']:.0%}, the "
            f"continuum limit by {misses['continuum']:.0%}.",
            misses["exact"] < ALARM * noise,
        )
    )
    for name, text in (
        ("coupled", "Two layers, both learning"),
        ("frozen", "Two layers, the first one frozen"),
    ):
        off = float(np.max(np.abs(v[name] / v[f"{name}_exact"] - 1)))
        noise = float(np.max(v[f"{name}_error"] / v[name]))
        low, high = float(v[name].min()), float(v[name].max())
        found.append(
            _judged(
                f"{text}: variances of layer 2 from {low:.2f} to {high:.2f} of ηs²/(2S), within {off:.1%} of "
                f"the closed form of first order in η (standard error {noise:.1%}).",
                off < 0.05 + ALARM * noise,
            )
        )
    gauge, error, theory = (float(v[name]) for name in ("gauge", "gauge_error", "gauge_theory"))
    found.append(
        Finding(
            f"Gauge: ⟨u² - v²⟩ of the scalar network has fallen to {gauge:.3f} ± {error:.3f} after "
            f"{float(v['age']):.0f} steps; its first rate alone, without the fall of u² + v², would "
            f"give {theory:.3f}."
        )
    )
    return found


def _judged(text: str, good: bool) -> Finding:
    return Finding(text if good else f"{text} This is a contradiction.", "result" if good else "warning")


def _two_layers(v: Values) -> Panel:
    figure, axis = _figure()
    kappa, strengths = v["layer_curvature"], v["strengths"]
    line = np.geomspace(kappa.min() / 2, kappa.max() * 2, 100)
    for i in range(v["coupled"].shape[0]):
        colour = f"C{i}"
        below = strengths[i] ** 2 if i < len(strengths) else 0.0
        axis.plot(line, line / (line + below), "-", lw=1, color=colour)
        _points(axis, kappa, v["coupled"][i], v["coupled_error"][i], colour, f"output mode {i + 1}")
    mean = v["frozen"].mean(0), (np.square(v["frozen_error"]).sum(0)) ** 0.5 / len(v["frozen"])
    _points(axis, kappa, *mean, "0.6", "layer 1 frozen")
    axis.set(
        xscale="log", yscale="log", xlabel="curvature felt by layer 2, s₁²", ylabel="variance / (ηs²/2S)"
    )
    axis.legend(frameon=False, fontsize=8)
    return Panel(
        "Two layers: the variance rises with the curvature",
        figure,
        "Variance of the weights of layer 2 in the singular bases, mean over runs and time (points) and "
        "κ/(κ + s₂²) (lines). Through the other layer the stiffer direction fluctuates more: where κ ≪ s₂² "
        "this is σ² ∝ κ ∝ F⁻², an inverse variance-flatness relation with ψ = 2. Above a frozen layer 1 "
        "(grey, mean over the output modes) all variances are equal.",
    )


def _one_layer(v: Values) -> Panel:
    figure, axis = _figure()
    order = np.argsort(v["curvature"])
    axis.plot(v["curvature"][order], v["online_exact"][order], "-", lw=1, color="C0", label="exact")
    axis.plot(v["curvature"][order], v["online_naive"][order], "--", lw=1, color="0.5", label="ηs²/(2S)")
    _points(axis, v["curvature"], v["online"], v["online_error"], "C0", "runs")
    axis.set(xscale="log", xlabel="curvature h", ylabel="variance σ²")
    axis.set_xticks(v["curvature"], [f"{h:g}" for h in v["curvature"]])
    axis.set_xticks([], minor=True)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    return Panel(
        "One layer, fresh data",
        figure,
        "Variance of the weights of a linear regression against curvature. The fluctuations of the weights "
        "make noise of their own, which the isotropic small-rate formula (dashed) leaves out.",
    )


def _finite_set(v: Values) -> Panel:
    figure, axis = _figure()
    upper = np.triu_indices(len(v["finite"]))
    ends = [float(f(v["finite_exact"])) for f in (np.min, np.max)]
    axis.plot(ends, ends, "-", lw=1, color="0.6")
    for name, colour, label in (
        ("additive", "tab:orange", "additive noise"),
        ("continuum", "tab:red", "continuum limit"),
    ):
        axis.plot(v[f"finite_{name}"][upper], v["finite"][upper], "x", ms=5, color=colour, label=label)
    axis.errorbar(
        v["finite_exact"][upper],
        v["finite"][upper],
        v["finite_error"][upper],
        fmt="o",
        ms=4,
        color="C0",
        label="exact",
    )
    axis.set(xlabel="theory Σ_ij", ylabel="runs Σ_ij")
    axis.legend(frameon=False)
    return Panel(
        "One layer, twice as many examples as weights",
        figure,
        "Every element of the covariance of the weights: runs against theory. On the diagonal they agree.",
    )


def _gauge(run: Run) -> Panel:
    figure, axis = _figure()
    age = run["age"].values
    axis.plot(age, run["gauge_theory"].values, "-", lw=1, color="0.5", label="first rate")
    _points(axis, age, run["gauge"].values, run["gauge_error"].values, "C0", "runs")
    axis.set(xlabel="optimizer step", ylabel="⟨u² - v²⟩ / start")
    axis.legend(frameon=False)
    return Panel(
        "The gauge is forgotten slowly",
        figure,
        "The scalar network uvx rests in a valley of equal losses. SGD moves along it, of second order in η, "
        "until u² = v²; gradient flow would keep u² - v² for ever.",
    )


def _points(axis: Axes, x: Any, y: Any, error: Any, colour: str, label: str) -> None:
    axis.errorbar(x, y, error, fmt="o", ms=4, color=colour, label=label)


def _figure() -> tuple[Any, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis

"""Figures of calibration, of the features' spectrum, and of their evolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from observatory.records import Panel
from observatory.uncertainty.metrics import binned_calibration, interval_calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from observatory.records import Run

# u₁ < u < u₂ with equal density of ln u and the given mass of a half-normal u = |r|/σ
BANDS = {0.6827: (0.33125, 1.89753), 0.9545: (0.051271, 2.83313), 0.9973: (0.0031731, 3.76248)}
POINTS, QUANTILES = 1500, 400  # that are drawn, at most: a page shows many figures
BLUE, RED, GREY = "#4c72b0", "#c44e52", "0.45"


def panels(run: Run) -> list[Panel]:
    """All figures of a record."""
    found = []
    if "nll" in run and len(run["nll"]) > 1:
        found += [evolution_panel(run), dimension_panel(run)]
    if "ood_raw" in run and len(run["ood_raw"]) > 1:
        found.append(elsewhere_panel(run))
    if "spectrum" in run and len(run["spectrum"]):
        spectrum = run["spectrum"]
        found.append(spectrum_panel(spectrum.values, spectrum.steps.tolist(), float(run["reg"].values[-1])))
    return found


def evolution_panel(run: Run) -> Panel:
    """Log-likelihood with its baselines, and calibration, against the step."""
    figure, (left, right) = _figure(1, 2, (9.0, 3.4))
    labels = {
        "nll": "last layer",
        "constant_nll": "one σ for all inputs",
        "plain_nll": "the network itself",
        "temperature_nll": "one temperature",
    }
    for name, label in labels.items():
        if name in run:
            _curve(left, run, name, label)
    left.set_ylabel("negative log-likelihood (nat)")
    for name, label in {
        "mean_z2": "mean z²",
        "coverage_90": "share in the 90 % interval",
        "spearman": "ρ(|r|, σ)",
        "spearman_ceiling": "its ceiling",
        "ece": "calibration error",
        "plain_ece": "of the network itself",
    }.items():
        if name in run:
            _curve(right, run, name, label)
    if "mean_z2" in run:
        right.axhline(1, color=GREY, lw=0.8, ls=":")
        right.set_ylim(0, min(3.0, 1.1 * float(np.nanmax(run["mean_z2"].values, initial=1.0))))
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
    return Panel(
        "Error bars during training",
        figure,
        "Scores of the half of the probe that did not calibrate. Left: negative log-likelihood beside its "
        "baselines. Right: calibration.",
    )


def dimension_panel(run: Run) -> Panel:
    """Effective dimension, participation ratio and rank against the step."""
    figure, (axis,) = _figure(1, 1, (6.0, 3.6))
    for name, label in (
        ("effective_dimension", "effective dimension Σλ/(λ + ς²)"),
        ("participation_ratio", "participation ratio (Σλ)²/Σλ²"),
        ("rank", "rank"),
    ):
        _curve(axis, run, name, label)
    axis.set_yscale("log")
    axis.legend(frameon=False, fontsize=8)
    return Panel(
        "Dimension of the features",
        figure,
        "How many directions of feature space the training examples fix, and over how many their variance is "
        "spread; a collapse of the features shows here.",
    )


def elsewhere_panel(run: Run) -> Panel:
    """How well scores tell inputs from elsewhere apart, against the step."""
    figure, (axis,) = _figure(1, 1, (6.0, 3.6))
    for name in run:
        if name.startswith("ood_"):
            _curve(axis, run, name, name.removeprefix("ood_").replace("_", " "))
    axis.axhline(0.5, color=GREY, lw=0.8, ls=":")
    axis.set_ylabel("AUROC")
    axis.legend(frameon=False, fontsize=8)
    return Panel("Inputs from elsewhere", figure, "Area under the ROC curve of each score; dotted: chance.")


def spectrum_panel(spectra: NDArray, steps: Sequence[int], reg: float) -> Panel:
    """Eigenvalues of C against rank, one curve per look, with ς² as a line."""
    import matplotlib

    figure, (axis,) = _figure(1, 1, (6.0, 4.0))
    colour, scale = matplotlib.colormaps["viridis"], np.log1p(max(steps)) or 1.0
    for spectrum, step in zip(spectra, steps, strict=True):
        shown = spectrum > 1e-14 * np.nanmax(spectrum, initial=0.0)
        rank = np.arange(1, len(spectrum) + 1)
        axis.loglog(rank[shown], spectrum[shown], lw=1.0, color=colour(np.log1p(step) / scale))
    if reg > 0:
        axis.axhline(reg, color=RED, lw=0.9, ls="--", label="ς² of the last look")
        axis.legend(frameon=False, fontsize=8)
    axis.set(xlabel="rank k", ylabel="eigenvalue λₖ of C")
    return Panel(
        "Spectrum of the features",
        figure,
        "Eigenvalues of the Gram matrix of the last layer's features, dark first and light last. Directions "
        "below the dashed ς² are not fixed by the training examples.",
    )


def parity_panel(
    residuals: torch.Tensor, std: torch.Tensor, title: str = "Errors against error bars"
) -> Panel:
    """|r| against σ of each row with its bands, RMSE against RMV of bins, and the reliability curve."""
    figure, (rows, bins, curve) = _figure(1, 3, (11.5, 3.6))
    r, s = residuals.double().cpu(), std.double().cpu()
    _bands(rows, s)
    shown = torch.randperm(len(r), generator=torch.Generator().manual_seed(0))[:POINTS]
    rows.loglog(s[shown], r[shown].abs().clamp_min(1e-4 * float(s.min())), ".", ms=2, color=BLUE, alpha=0.5)
    rows.set(xlabel="σ", ylabel="|r|")
    rmv, rmse, count = binned_calibration(r, s)
    wide = 1 / (2 * float(count.min())) ** 0.5
    line = np.geomspace(float(rmv.min()), float(rmv.max()), 50)
    bins.fill_between(line, line * (1 - 2 * wide), line * (1 + 2 * wide), color="0.88", lw=0)
    bins.loglog(line, line, color=GREY, lw=0.8)
    bins.loglog(rmv, rmse, "o", ms=3.5, color=BLUE)
    bins.set(xlabel="√mean σ² of a bin", ylabel="√mean r² of a bin")
    for side in (rows.xaxis, bins.xaxis, bins.yaxis):
        _few_labels(side)
    p, share = interval_calibration(r, s)
    curve.plot([0, 1], [0, 1], color=GREY, lw=0.8)
    curve.plot(p, share, color=BLUE)
    curve.set(xlabel="nominal share", ylabel="share inside the interval")
    return Panel(
        title,
        figure,
        "Left: each test row; bands hold 68, 95 and 99.7 % of a half-normal error. Middle: equal-count bins "
        "of σ; grey: two standard deviations of calibrated errors. Right: central intervals.",
    )


def _bands(axis: Axes, std: torch.Tensor) -> None:
    line = np.geomspace(float(std.min()), float(std.max()) * 1.0001, 50)
    for (low, high), shade in zip(reversed(BANDS.values()), ("0.94", "0.88", "0.80"), strict=True):
        axis.fill_between(line, low * line, high * line, color=shade, lw=0)
    axis.plot(line, line, color=GREY, lw=0.8)


def _few_labels(side: Any) -> None:
    """1, 2, 5 on a logarithmic axis of less than two decades, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = side.get_view_interval()
    if high < 100 * low:
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        side.set_minor_formatter(NullFormatter())


def normal_panel(z: torch.Tensor, title: str = "Standardised errors") -> Panel:
    """Histogram and Q–Q plot of z = r/σ against the standard normal distribution."""
    figure, (histogram, quantiles) = _figure(1, 2, (8.0, 3.4))
    z = z.double().cpu().flatten().sort().values
    histogram.hist(z.clamp(-5, 5), bins=41, range=(-5, 5), density=True, color=BLUE, alpha=0.6)
    grid = np.linspace(-5, 5, 200)
    histogram.plot(grid, np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi), color="0.2", lw=1)
    histogram.set(xlabel="z = r/σ", ylabel="density")
    ranks = torch.linspace(0, len(z) - 1, min(len(z), QUANTILES)).long().unique()
    p = (ranks.double() + 0.5) / len(z)
    quantiles.plot([-4, 4], [-4, 4], color=GREY, lw=0.8)
    quantiles.plot(torch.special.ndtri(p), z[ranks], ".", ms=2.5, color=BLUE)
    quantiles.set(xlabel="normal quantile", ylabel="quantile of z")
    return Panel(
        title, figure, "Errors in units of their error bars against the standard normal distribution."
    )


def scores_panel(
    scores: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    title: str,
    names: tuple[str, str] = ("at home", "elsewhere"),
) -> Panel:
    """Histograms of scores, by label, of two kinds of inputs."""
    figure, axes = _figure(1, len(scores), (4.6 * len(scores), 3.2))
    for axis, (label, pair) in zip(axes, scores.items(), strict=True):
        both = torch.cat(pair).double().cpu()
        edges = np.linspace(float(both.quantile(0.001)), float(both.quantile(0.999)), 60)
        for values, colour, name in zip(pair, (BLUE, RED), names, strict=True):
            axis.hist(values.cpu().numpy(), bins=edges, density=True, color=colour, alpha=0.55, label=name)
        axis.set(xlabel=label, ylabel="density")
    axes[0].legend(frameon=False)
    return Panel(title, figure, f"Distribution over test inputs, {' and '.join(names)}.")


def band_panel(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, points: Any = None) -> Panel:
    """A function of one variable with its ±1σ and ±2σ bands, and the training points (x, y)."""
    figure, (axis,) = _figure(1, 1, (6.0, 3.6))
    order = x.flatten().argsort()
    t, m, s = (v.detach().double().cpu().flatten()[order.cpu()] for v in (x, mean, std))
    for k, shade in ((2, 0.18), (1, 0.3)):
        axis.fill_between(t, m - k * s, m + k * s, color=BLUE, alpha=shade, lw=0)
    axis.plot(t, m, color=BLUE)
    if points is not None:
        axis.plot(points[0].cpu().flatten(), points[1].cpu().flatten(), ".", ms=3, color="0.2")
    axis.set(xlabel="x", ylabel="y")
    return Panel("Prediction", figure, "Mean with one and two standard deviations; dots: training rows.")


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, NDArray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curve(axis: Axes, run: Run, name: str, label: str) -> None:
    axis.plot(run[name].steps, run[name].values, "o-", ms=3, lw=1, label=label)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(left=0)
    axis.set_xlabel("optimizer step")

"""Figures of the fluctuations of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from observatory.records import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from observatory.records import Run

Values = Mapping[str, NDArray]


def panels(run: Run) -> list[Panel]:
    """All figures of a record: the window that was concluded last."""
    if "variance" not in run or not len(run["variance"]):
        return []
    names = run["variant_exponent"].coordinates.get("variant", []) if "variant_exponent" in run else []
    return draw({name: np.asarray(run[name].values[-1]) for name in run if len(run[name])}, names)


def draw(values: Values, variants: Sequence[str]) -> list[Panel]:
    """All figures of one window."""
    if not np.isfinite(values["variance"]).any():
        return []
    found = [spectrum_panel(values)]
    if np.isfinite(values["curvature"]).any():
        found.insert(0, relation_panel(values))
    if "projections" in values:
        found.append(motion_panel(values))
    if "profile_loss" in values:
        found.append(profile_panel(values))
    if "variant_exponent" in values and np.isfinite(values["variant_exponent"]).any():
        found.append(variant_panel(values, variants))
    return found


def relation_panel(values: Values) -> Panel:
    """Variance against flatness and against curvature, with the fit."""
    figure, (left, right) = _figure(1, 2, (9.0, 4.0))
    variance, flat, curvature = values["variance"], values["flatness"], values["curvature"]
    rank = np.arange(1, len(variance) + 1)
    fitted = (rank >= values["first_rank"]) & (rank <= values["last_rank"]) & np.isfinite(flat) & (flat > 0)
    for axis, x, label in ((left, flat, "flatness F"), (right, curvature, "curvature κ")):
        shown = np.isfinite(x) & (x > 0) & (variance > 0)
        points = axis.scatter(x[shown], variance[shown], c=rank[shown], cmap="viridis", s=18, zorder=2)
        outside = shown & ~fitted
        axis.scatter(x[outside], variance[outside], s=60, facecolors="none", edgecolors="0.5")
        axis.set(xscale="log", yscale="log", xlabel=label)
        _label_sparsely(axis.xaxis)
    left.set_ylabel("variance σ²")
    exponent = float(values["exponent"])
    if fitted.sum() >= 3 and np.isfinite(exponent):
        centre = np.log(flat[fitted]).mean(), np.log(variance[fitted]).mean()
        ends = np.array([flat[fitted].min(), flat[fitted].max()])
        left.plot(ends, np.exp(centre[1] - exponent * (np.log(ends) - centre[0])), "k-", lw=1)
    temperature = values["temperature"]
    hot = np.isfinite(temperature) & (temperature > 0) & (curvature > 0)
    if hot.any():
        right.scatter(
            curvature[hot], (temperature / np.where(hot, curvature, 1))[hot], marker="_", c="tab:red"
        )
    figure.colorbar(points, ax=[left, right], label="rank")
    return Panel("Variance against flatness and curvature", figure, _relation_caption(values))


def _label_sparsely(axis: Any) -> None:
    """Labels that do not touch: 1, 2 and 5 within two decades, powers of ten beyond."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _relation_caption(values: Values) -> str:
    v = {name: float(x) for name, x in values.items() if np.ndim(x) == 0}
    nulls = (
        "Equilibrium at one temperature would have ψ = -2. Red dashes: T/κ, what white noise of the measured "
        "strength gives."
    )
    if not np.isfinite(v["exponent"]):
        return f"Each point is a direction; too few have a flatness for an exponent. {nulls}"
    interval = "."
    if np.isfinite(v["exponent_low"]):
        interval = f"; 95 % of resampled windows {v['exponent_low']:.2f} to {v['exponent_high']:.2f}."
    fit = f"ψ = {v['exponent']:.2f} ± {v['exponent_error']:.2f}"
    ranks = f"ranks {v['first_rank']:.0f} to {v['last_rank']:.0f}, r = {v['correlation']:.2f}{interval}"
    return (
        f"Each point is a direction. Line: σ² ∝ F^(-ψ), {fit} over {ranks} Circled points are not in the "
        f"fit. {nulls}"
    )


def spectrum_panel(values: Values) -> Panel:
    """Variances and correlation times against rank, with the two nulls."""
    figure, (left, right) = _figure(1, 2, (9.0, 4.0))
    spectrum = values.get("spectrum", values["variance"])
    rank = np.arange(1, len(spectrum) + 1)
    left.loglog(rank, spectrum, "o", ms=3, label="Σ")
    left.loglog(
        rank, float(values["total_variance"]) * 6 / (np.pi * rank) ** 2, "k--", lw=1, label="random walk"
    )
    low, high = float(values["band_low"]), float(values["band_high"])
    if np.isfinite([low, high]).all():
        left.axhspan(
            max(low, spectrum.min() / 10), high, color="tab:orange", alpha=0.2, label="isotropic noise"
        )
    left.set(xlabel="rank", ylabel="variance σ²")
    left.legend(frameon=False)
    k = np.arange(1, len(values["variance"]) + 1)
    for name, marker, label in (("integrated_time", "o", "τ_int"), ("decay_time", "x", "τ_e")):
        shown = np.isfinite(values[name]) & (values[name] > 0)
        right.loglog(k[shown], values[name][shown], marker, ms=4, label=label)
    window = float(values["last_step"] - values["first_step"] + values["every"])
    right.axhline(window / 20, color="0.5", ls=":", lw=1, label="window / 20")
    right.set(xlabel="rank", ylabel="correlation time (steps)")
    right.legend(frameon=False)
    return Panel(
        "Spectrum and correlation times",
        figure,
        "Left: eigenvalues of the covariance of the weights. A random walk of the same total variance "
        "would lie on the dashed line; eigenvalues inside the band cannot be told from isotropic noise in "
        "so short a window. Right: correlation times; above the dotted line the window is too short to "
        "resolve them.",
    )


def motion_panel(values: Values) -> Panel:
    """Projections on the leading components against time."""
    count = int(np.isfinite(values["projections"]).all(0)[:4].sum())
    figure, axes = _figure(count, 1, (7.0, 1.2 + 1.1 * count), sharex=True)
    step = float(values["first_step"]) + float(values["every"]) * np.arange(len(values["projections"]))
    for k, axis in enumerate(np.atleast_1d(axes)):
        axis.plot(step, values["projections"][:, k], lw=0.6)
        axis.set_ylabel(f"θ_{k + 1}")
    np.atleast_1d(axes)[-1].set_xlabel("optimizer step")
    return Panel(
        "Motion along the leading directions",
        figure,
        f"Projections of the weights. The first matches half a cosine over the window with |r| = "
        f"{float(values['cosine'][0]):.3f}; above 0.95 it is a drift or a random walk, not a fluctuation.",
    )


def profile_panel(values: Values) -> Panel:
    """Loss along the leading directions."""
    figure, axis = _figure(1, 1, (6.0, 4.0))
    base = float(values["loss_at_mean"])
    for k, (s, loss) in enumerate(zip(values["profile_distance"], values["profile_loss"], strict=True)):
        if np.isfinite(loss).any():
            axis.plot(s / (s[-1] - s[0]), loss, lw=1, label=f"direction {k + 1}")
    axis.axhline(base * np.e, color="0.5", ls=":", lw=1, label="e·L₀")
    axis.set(xlabel="distance from the mean weights / width shown", ylabel="loss L")
    if base > 0:
        axis.set_yscale("log")
    axis.legend(frameon=False)
    return Panel(
        "Loss profiles",
        figure,
        "Loss along the leading directions through the mean weights of the window, each over 1.2 times its "
        "own flatness F, the width at e times the loss at the mean.",
    )


def variant_panel(values: Values, variants: Sequence[str]) -> Panel:
    """The exponent for other ranges, windows and bases."""
    figure, axis = _figure(1, 1, (6.0, 0.8 + 0.35 * len(variants)))
    place = np.arange(len(variants))[::-1]
    axis.errorbar(values["variant_exponent"], place, xerr=values["variant_error"], fmt="o", ms=4)
    axis.axvline(float(values["exponent"]), color="0.5", ls=":", lw=1)
    axis.set_yticks(place, list(variants))
    axis.set_xlabel("exponent ψ ± standard error")
    return Panel(
        "How much of the exponent is a matter of choice",
        figure,
        "ψ for other ranges of components, for each half of the window, after removing a linear trend, "
        "and along the leading eigenvectors of the Hessian instead of the trajectory's own components. "
        "Dotted: the value above.",
    )


def _figure(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, **kwargs)

"""Figures of the Fisher information."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from observatory.ntk.stages_figures import mark_stages, stages_or_none
from observatory.records import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from observatory.records import Run

SHOWN_LAYERS = 12


def panels(run: Run) -> list[Panel]:
    """All figures of a record; none before two looks are taken."""
    if "trace" not in run or len(run["trace"]) < 2:
        return []
    found = [evolution_panel(run)]
    if "layers" in run and len(run["layers"].coordinates.get("layer", ())) > 1:
        found.append(layers_panel(run))
    if "noise" in run and np.isfinite(run["noise"].values).any():
        found.append(noise_panel(run))
    return found


def evolution_panel(run: Run) -> Panel:
    """Trace of the true and the empirical Fisher information, and the loss, against the step."""
    figure, axes = _figure(2, (7.0, 5.4))
    trace = run["trace"]
    error = _band(run, "sampling_error", len(trace))
    axes[0].plot(trace.steps, trace.values, "o-", ms=3, label="Tr F, labels of the model")
    axes[0].fill_between(trace.steps, trace.values - error, trace.values + error, alpha=0.2, lw=0)
    if np.isfinite(run["empirical_trace"].values).any():
        axes[0].plot(
            trace.steps, run["empirical_trace"].values, "o-", ms=3, label="Tr Fₑ, labels of the data"
        )
    if np.isfinite(trace.values).any():
        top = int(np.nanargmax(trace.values))
        axes[0].axvline(trace.steps[top], color="0.5", ls=":", lw=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mark_stages(axes[0], stages_or_none(trace.steps, np.log(trace.values)))
    axes[0].set_ylabel("trace of the Fisher information")
    axes[0].legend(frameon=False)
    axes[1].plot(run["loss"].steps, run["loss"].values, "o-", ms=3, color="tab:green")
    axes[1].set_ylabel("loss on the probe")
    _against_steps(axes, (trace.values, run["loss"].values))
    return Panel(
        "Fisher information",
        figure,
        "Mean squared length of the score with labels of the model's own distribution, and with those of the "
        "data; the band is the standard error over examples, the dotted line the maximum. Stages of "
        "ln Tr F are shaded: blue falls, orange rises. A maximum ahead of the fall of the loss closes the "
        "stage of fast change; the empirical trace vanishes as data are fitted, the true one only as "
        "predictions become certain.",
    )


def layers_panel(run: Run) -> Panel:
    """Share of each layer in the trace."""
    figure, axes = _figure(1, (7.0, 4.0))
    layers = run["layers"]
    names = layers.coordinates["layer"]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = layers.values / layers.values.sum(1, keepdims=True)
    order = np.argsort(-np.nan_to_num(share).mean(0))
    shown, rest = order[:SHOWN_LAYERS], order[SHOWN_LAYERS:]
    kept = np.sort(shown)
    rows = [share[:, k] for k in kept] + ([share[:, rest].sum(1)] if len(rest) else [])
    labels = [names[k] for k in kept] + ([f"{len(rest)} others"] if len(rest) else [])
    axes[0].stackplot(layers.steps, np.nan_to_num(rows), labels=labels, alpha=0.85)
    axes[0].set_ylim(0, 1)
    axes[0].set_ylabel("share of Tr F")
    axes[0].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _against_steps(axes, ())
    return Panel("Layers", figure, "What each layer's parameters contribute to the trace, as shares.")


def noise_panel(run: Run) -> Panel:
    """Signal and noise of the gradient, and the batch size at which they are equal."""
    figure, axes = _figure(2, (7.0, 5.0))
    for name, label in (("noise", "noise Tr Cov"), ("signal", "signal ‖∇L‖²")):
        axes[0].plot(run[name].steps, run[name].values, "o-", ms=3, label=label)
    axes[0].set_ylabel("squared gradient")
    axes[0].legend(frameon=False)
    axes[1].plot(run["noise_scale"].steps, run["noise_scale"].values, "o-", ms=3, color="tab:purple")
    axes[1].set_ylabel("noise scale (examples)")
    squares = np.concatenate([run[name].values for name in ("noise", "signal")])
    _against_steps(axes, (squares, run["noise_scale"].values))
    return Panel(
        "Gradient signal and noise",
        figure,
        "Squared length of the mean gradient, scatter of single examples' gradients about it, and their "
        "ratio: the batch size below which a step is mostly noise.",
    )


def _band(run: Run, name: str, size: int) -> NDArray:
    return np.nan_to_num(run[name].values) if name in run else np.zeros(size)


def _figure(rows: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, 1, sharex=True)).tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _against_steps(axes: list[Axes], series: tuple[NDArray, ...]) -> None:
    """Logarithmic in the step, and in values that are all positive."""
    axes[-1].set_xlabel("optimizer step")
    axes[-1].set_xscale("symlog", linthresh=1)
    axes[-1].set_xlim(left=0)
    for axis, values in zip(axes, series, strict=False):
        finite = values[np.isfinite(values)]
        if finite.size and (finite > 0).all():
            axis.set_yscale("log")

"""Figures of the kernel's collective variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from observatory.ntk.stages_figures import mark_stages, stages_or_none
from observatory.records import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from observatory.records import Run

COLOURS = "viridis"


def panels(run: Run) -> list[Panel]:
    """All figures of a record."""
    found = []
    if "entropy" in run and "mean_trace" in run and len(run["entropy"]) > 1:
        found += [evolution_panel(run), phase_panel(run)]
    if "spectrum" in run and len(run["spectrum"]):
        spectrum = run["spectrum"]
        found.append(spectrum_panel(spectrum.values, spectrum.steps.tolist()))
    if "centred_alignment" in run and np.isfinite(run["centred_alignment"].values).any():
        found.append(alignment_panel(run))
    if "kernel" in run and len(run["kernel"]):
        kernel = run["kernel"]
        chosen = sorted(
            {
                0,
                int(np.argmin(np.abs(np.log1p(kernel.steps) - np.log1p(kernel.steps[-1]) / 2))),
                -1 % len(kernel),
            }
        )
        found.append(kernel_panel({f"step {kernel.steps[k]}": np.asarray(kernel.values[k]) for k in chosen}))
    return found


def evolution_panel(run: Run) -> Panel:
    """Entropy and mean trace against the logarithm of the step."""
    figure, axes = _figure(2, 1, (7.0, 5.0), sharex=True)
    entropy, trace = run["entropy"], run["mean_trace"]
    axes[0].plot(entropy.steps, entropy.values, "o-", ms=3, label="entropy")
    if "centred_entropy" in run:
        axes[0].plot(entropy.steps, run["centred_entropy"].values, "o-", ms=3, label="of the centred kernel")
    axes[0].set_ylabel("entropy S (nat)")
    axes[0].legend(frameon=False)
    mark_stages(axes[0], stages_or_none(entropy.steps, entropy.values))
    axes[1].plot(trace.steps, trace.values, "o-", ms=3, color="tab:red")
    axes[1].set_ylabel("mean trace Tr K / n")
    axes[1].set_xlabel("optimizer step")
    axes[1].set_xscale("symlog", linthresh=1)
    axes[1].set_xlim(left=0)
    if (trace.values > 0).all():
        axes[1].set_yscale("log")
        mark_stages(axes[1], stages_or_none(trace.steps, np.log(trace.values)))
    return Panel(
        "Entropy and trace",
        figure,
        "Entropy of the kernel's spectrum and its mean trace against the number of updates (logarithmic). "
        "A falling entropy means that fewer directions carry the response to training, a rising one that "
        "structure forms; the trace is the squared length of the gradients. Stages are shaded: blue falls, "
        "grey rests, orange rises.",
    )


def phase_panel(run: Run) -> Panel:
    """Entropy against trace, coloured by step."""
    figure, axes = _figure(1, 1, (6.0, 4.4))
    entropy, trace = run["entropy"], run["mean_trace"]
    colours = np.log1p(entropy.steps)
    axes[0].plot(trace.values, entropy.values, "-", lw=0.7, color="0.7", zorder=1)
    points = axes[0].scatter(trace.values, entropy.values, c=colours, cmap=COLOURS, s=22, zorder=2)
    _step_colourbar(figure, points, entropy.steps)
    for k, word in ((0, "start"), (-1, "end")):
        if np.isfinite(trace.values[k]) and np.isfinite(entropy.values[k]):
            axes[0].annotate(
                word, (trace.values[k], entropy.values[k]), xytext=(7, 7), textcoords="offset points"
            )
    axes[0].set_xlabel("mean trace Tr K / n")
    axes[0].set_ylabel("entropy S (nat)")
    if (trace.values > 0).all() and trace.values.max() > 5 * trace.values.min():
        axes[0].set_xscale("log")
    return Panel(
        "Phase portrait",
        figure,
        "The path of the run in the plane of its two main collective variables, coloured by the step.",
    )


def spectrum_panel(spectra: NDArray, steps: Sequence[int]) -> Panel:
    """Eigenvalues against rank, both logarithmic, one curve per look."""
    figure, axes = _figure(1, 1, (6.0, 4.4))
    import matplotlib

    colour = matplotlib.colormaps[COLOURS]
    rank = np.arange(1, spectra.shape[1] + 1)
    scale = np.log1p(max(steps)) or 1.0
    for spectrum, step in zip(spectra, steps, strict=True):
        shown = spectrum > 1e-12 * np.nanmax(spectrum, initial=0.0)
        axes[0].plot(rank[shown], spectrum[shown], lw=1.0, color=colour(np.log1p(step) / scale))
    axes[0].set_xscale("log")
    axes[0].set_yscale("log")
    axes[0].set_xlabel("rank k")
    axes[0].set_ylabel("eigenvalue λₖ of K")
    if len(steps) > 1:
        mappable = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, scale), colour)
        _step_colourbar(figure, mappable, np.asarray(steps), axes[0])
    return Panel("Spectrum", figure, "Eigenvalues of the kernel against their rank, one curve per look.")


def kernel_panel(kernels: Mapping[str, NDArray]) -> Panel:
    """Cosines of the centred kernel HKH as images, rows sorted by class."""
    figure, axes = _figure(1, len(kernels), (3.1 * len(kernels) + 0.9, 3.2))
    image = None
    for axis, (title, kernel) in zip(axes, kernels.items(), strict=True):
        kernel = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
        lengths = np.sqrt(np.clip(np.diag(kernel), 1e-300, None))
        image = axis.imshow(kernel / np.outer(lengths, lengths), vmin=-1, vmax=1, cmap="RdBu_r")
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    if image is not None:
        figure.colorbar(image, ax=list(axes), label="cosine", shrink=0.85)
    return Panel(
        "Kernel",
        figure,
        "Cosine of the angle between the gradients of two examples, without the mean that all share; "
        "examples are sorted by class, so that blocks on the diagonal are classes that learn together.",
    )


def alignment_panel(run: Run) -> Panel:
    """Alignment with the targets, and distance from the first kernel."""
    figure, axes = _figure(1, 1, (6.0, 4.4))
    for name, label in (
        ("centred_alignment", "centred alignment with the targets"),
        ("alignment", "alignment with the targets"),
        ("distance", "distance from the first kernel"),
    ):
        if name in run:
            axes[0].plot(run[name].steps, run[name].values, "o-", ms=3, label=label)
    axes[0].set_xscale("symlog", linthresh=1)
    axes[0].set_xlim(left=0)
    axes[0].set_ylim(-0.02, 1.02)
    axes[0].set_xlabel("optimizer step")
    axes[0].legend(frameon=False)
    return Panel(
        "Alignment and distance",
        figure,
        "How far the kernel points along the targets (1: it is theirs), and how far it has turned since the "
        "first look (0: lazy training, in which the kernel stays what it was).",
    )


def _figure(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> tuple[Figure, NDArray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, **kwargs)).ravel()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _step_colourbar(figure: Figure, mappable: Any, steps: NDArray, axis: Any = None) -> None:
    bar = figure.colorbar(mappable, ax=axis if axis is not None else figure.axes[0], label="optimizer step")
    last = int(steps[-1])
    ticks = [0, *(10**k for k in range(len(str(last))))]
    bar.set_ticks(
        [float(np.log1p(t)) for t in ticks if t <= last], labels=[str(t) for t in ticks if t <= last]
    )

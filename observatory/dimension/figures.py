"""Figures of dimension and focusing along the depth."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from observatory.dimension.figures_orders import orders_panel
from observatory.dimension.tails import FAR, FEWEST
from observatory.records import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from observatory.records import Run

Values = Mapping[str, NDArray]
COLOURS = "viridis"
FOCUSING = "path_focusing"
INTRINSIC = ("levina_bickel", "two_nn", "gride")  # the first that was measured is shown
NAMES = {"levina_bickel": "MLE", "two_nn": "TwoNN", "gride": "Gride"}


def panels(run: Run) -> list[Panel]:
    """All figures of a record."""
    if "depth" not in run or not len(run["depth"]):
        return []
    looks = [{name: np.asarray(run[name].values[k]) for name in run} for k in range(len(run["depth"]))]
    steps, layers = run["depth"].steps.tolist(), run["depth"].coordinates.get("layer", [])
    found = [depth_panel(looks, steps)]
    if len(looks) > 1 and len(layers) > 1:
        found.append(map_panel(looks, steps, layers))
    if "gride" in looks[0]:
        found.append(scale_panel(looks[:: max(1, len(looks) - 1)], [steps[0], steps[-1]], layers))
    if np.isfinite(looks[-1]["path_focusing"]).any():
        found.append(share_panel(looks[:: max(1, len(looks) - 1)], [steps[0], steps[-1]], layers))
    found.append(sides_panel(looks[0], looks[-1], steps))
    found.append(exponent_panel(looks[0], looks[-1], run["alpha"].coordinates.get("weight", [])))
    orders = orders_panel(run)
    return found if orders is None else [*found, orders]


def of_one_look(values: Values, layers: Sequence[str], past: Mapping[int, Values]) -> list[Panel]:
    """Figures of one look, for TensorBoard; `past` has the rows of the map by step, this look's as well."""
    found = [depth_panel([values], [0])]
    if len(past) > 1 and len(layers) > 1:
        found.append(map_panel(list(past.values()), list(past), layers))
    if "gride" in values:
        found.append(scale_panel([values], [], layers))
    if np.isfinite(values["path_focusing"]).any():
        found.append(share_panel([values], [], layers))
    return found


def depth_panel(looks: Sequence[Values], steps: Sequence[int]) -> Panel:
    """Dimensions and focusing against relative depth, steps as colour."""
    name = _intrinsic(looks[0])
    shown = [(name, f"intrinsic dimension ({NAMES[name]})")] if name else []
    shown += [("participation_ratio", "participation ratio")] if "participation_ratio" in looks[0] else []
    shown += [("path_focusing", "focusing of paths"), ("active_path_focusing", "focusing of active paths")]
    shown = [(key, label) for key, label in shown if any(np.isfinite(look[key]).any() for look in looks)]
    rows = max(1, (len(shown) + 1) // 2)
    figure, axes = _figure(rows, min(2, max(1, len(shown))), (9.0, 3.1 * rows), sharex=True)
    for axis, (key, label) in zip(axes, shown, strict=False):
        for look, colour in zip(looks, _colours(steps), strict=True):
            y = look[key][:, 0] if look[key].ndim > 1 else look[key]
            error = look.get(f"{key}_error")
            axis.plot(look["depth"], y, "o-", ms=3, lw=1, color=colour)
            if error is not None and error.ndim == 1 and look is looks[-1]:
                axis.fill_between(look["depth"], y - error, y + error, color=colour, alpha=0.25, lw=0)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis in axes[max(0, len(shown) - 2) : len(shown)]:
        axis.set_xlabel("relative depth")
        axis.xaxis.set_tick_params(labelbottom=True)
    if len(steps) > 1:
        _step_colourbar(figure, steps, axes[: len(shown)])
    return Panel(
        "Dimension and focusing along the depth",
        figure,
        "Each curve is a look, from the first step (dark) to the last (bright), with the standard error of "
        "the last one. Intrinsic dimension counts the coordinates of the manifold on which the hidden "
        "representations lie, the participation ratio the directions that share their variance. Focusing is "
        "0 where all nodes of a layer share the paths equally and 1 where all paths pass one node; of active "
        "paths, nodes count as often as they are active. Depth counts weight layers.",
    )


def map_panel(looks: Sequence[Values], steps: Sequence[int], layers: Sequence[str]) -> Panel:
    """Layer against time, dimension and focusing as colour."""
    shown = [
        (key, "focusing of paths" if key == FOCUSING else f"dimension ({NAMES.get(key, 'PR')})")
        for key in mapped(looks[0])
    ]
    figure, axes = _figure(1, len(shown), (9.0, 1.6 + 0.24 * len(layers)))
    for axis, (key, label) in zip(axes, shown, strict=True):
        table = np.stack([look[key][:, 0] if look[key].ndim > 1 else look[key] for look in looks], 1)
        image = axis.imshow(table, aspect="auto", origin="lower", cmap=COLOURS, interpolation="nearest")
        ticks = np.unique(np.linspace(0, len(steps) - 1, min(6, len(steps))).round().astype(int))
        axis.set_xticks(ticks, [str(steps[k]) for k in ticks])
        axis.set_yticks(range(len(layers)), layers if axis is axes[0] else [""] * len(layers), fontsize=8)
        axis.set_xlabel("optimizer step of the look")
        figure.colorbar(image, ax=axis, label=label)
    return Panel(
        "Layers against time",
        figure,
        "Rows are hidden layers from the input (bottom) to the output (top), columns are looks.",
    )


def mapped(names: Container[str]) -> list[str]:
    """Those of the quantities that `map_panel` shows."""
    return [name for name in (_intrinsic(names) or "participation_ratio", FOCUSING) if name in names]


def scale_panel(looks: Sequence[Values], steps: Sequence[int], layers: Sequence[str]) -> Panel:
    """Dimension against scale, one curve per layer."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = _figure(1, len(looks), (4.6 * len(looks), 3.6), sharey=True)
    for k, (axis, look) in enumerate(zip(axes, looks, strict=True)):
        for curve, error, scale, colour in zip(
            look["gride"], look["gride_error"], look["gride_scale"], _ramp(len(layers)), strict=True
        ):
            axis.errorbar(scale, curve, error, fmt="o-", ms=3, lw=1, color=colour)
        if np.isfinite(look["gride_scale"]).any() and (look["gride_scale"] > 0).any():
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("mean distance to the n₁-th neighbour")
        if len(looks) > 1:
            axis.set_title(f"step {steps[k]}", fontsize=10)
    axes[0].set_ylabel("dimension (Gride, n₁ and 2n₁)")
    axes[0].set_ylim(bottom=0)
    _layer_colourbar(figure, axes, layers)
    return Panel(
        "Dimension against scale",
        figure,
        "Dimension from neighbours of rank n₁ = 1, 2, 4 ... and 2n₁, with its standard error. A plateau is a "
        "manifold; a fall from small to large distances is noise about one, seen close up.",
    )


def share_panel(looks: Sequence[Values], steps: Sequence[int], layers: Sequence[str]) -> Panel:
    """Share of the paths that the strongest nodes carry, one curve per layer."""
    figure, axes = _figure(1, len(looks), (4.6 * len(looks), 3.6), sharey=True)
    for k, (axis, look) in enumerate(zip(axes, looks, strict=True)):
        at = np.linspace(0, 1, look["share_curve"].shape[1])
        for curve, colour in zip(look["share_curve"], _ramp(len(layers)), strict=True):
            axis.plot(at, curve, lw=1.2, color=colour)
        axis.plot([0, 1], [0, 1], ":", color="0.5", lw=1)
        axis.set_xlabel("strongest nodes / width")
        if len(looks) > 1:
            axis.set_title(f"step {steps[k]}", fontsize=10)
    axes[0].set_ylabel("share of the paths")
    _layer_colourbar(figure, axes, layers)
    return Panel(
        "Sorted shares of the nodes",
        figure,
        "Nodes sorted by their share in the paths, added up from the strongest on; dotted: equal shares.",
    )


def sides_panel(first: Values, last: Values, steps: Sequence[int]) -> Panel:
    """Effective nodes by weights that come in and that leave, beside what random weights give."""
    figure, axes = _figure(1, 2, (9.0, 3.4), sharey=True)
    for axis, side, label in zip(axes, ("in", "out"), ("weights that come in", "that leave"), strict=True):
        for look, style, name in ((first, "o--", f"step {steps[0]}"), (last, "o-", f"step {steps[-1]}")):
            share = look[f"{side}_effective_nodes"] / look["nodes"]
            axis.plot(look["depth"], share, style, ms=4, lw=1, label=name)
        null = last[f"{side}_nodes_at_random"] / last["nodes"]
        axis.plot(last["depth"], null, "_", ms=12, color="k", label="Gaussian weights")
        axis.set(xlabel="relative depth", title=label, ylim=(0, 1.05))
    axes[0].set_ylabel("effective nodes / width")
    axes[0].legend(frameon=False)
    return Panel(
        "Focusing seen from either side",
        figure,
        "Effective number of nodes, as a share of the width, by the strengths of incoming and of outgoing "
        "weights (small: focused). Dashes are independent Gaussian weights: before few outputs even those "
        "look focused from the far side. Gradient flow keeps the difference of the strengths of each node, "
        "so that small initial weights make both sides agree.",
    )


def exponent_panel(first: Values, last: Values, weights: Sequence[str]) -> Panel:
    """Exponents of the spectra of the weights."""
    figure, (axis,) = _figure(1, 1, (9.0, 3.2))
    place = np.arange(len(last["alpha"]))
    for look, colour, shift, name in (
        (first, "0.6", -0.1, "first look"),
        (last, "tab:blue", 0.1, "last look"),
    ):
        sure = (look["tail_points"] >= FEWEST) & (look["tail_distance"] <= FAR)
        axis.plot(place[sure] + shift, look["alpha"][sure], "o", color=colour, label=name)
        axis.plot(place[~sure] + shift, look["alpha"][~sure], "o", mfc="none", color=colour)
    axis.axhspan(2, 6, color="tab:green", alpha=0.08, lw=0)
    axis.set_xticks(place, list(weights) or [str(k) for k in place], fontsize=8)
    axis.set_ylabel("exponent α")
    if np.isfinite(last["alpha"]).any():
        axis.set_ylim(1, max(7.0, min(14.0, float(np.nanmax(last["alpha"])) + 1)))
    axis.legend(frameon=False)
    return Panel(
        "Spectral exponents of the weights",
        figure,
        "Exponent of the tail of the eigenvalues of WᵀW. Open circles: a tail of fewer than 20 eigenvalues "
        "or a Kolmogorov-Smirnov distance above 0.1, where the exponent means little. Shaded: 2 to 6, which "
        "Martin and Mahoney associate with well-trained layers.",
    )


def _intrinsic(look: Container[str]) -> str | None:
    return next((name for name in INTRINSIC if name in look), None)


def _colours(steps: Sequence[int]) -> list[Any]:
    import matplotlib

    scale = np.log1p(max(steps)) or 1.0
    return [matplotlib.colormaps[COLOURS](0.95 * np.log1p(step) / scale) for step in steps]


def _ramp(layers: int) -> list[Any]:
    import matplotlib

    return [matplotlib.colormaps["plasma"](0.9 * k / max(layers - 1, 1)) for k in range(layers)]


def _layer_colourbar(figure: Figure, axes: NDArray, layers: Sequence[str]) -> None:
    import matplotlib

    colours = matplotlib.colors.ListedColormap(_ramp(len(layers)))
    mappable = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0.5, len(layers) + 0.5), colours)
    bar = figure.colorbar(mappable, ax=list(axes), label="hidden layer")
    bar.set_ticks([1, len(layers)] if len(layers) > 1 else [1])


def _step_colourbar(figure: Figure, steps: Sequence[int], axes: NDArray) -> None:
    import matplotlib

    scale = np.log1p(max(steps)) or 1.0
    mappable = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, scale), COLOURS)
    bar = figure.colorbar(mappable, ax=list(axes), label="optimizer step")
    ticks = [t for t in (0, *(10**k for k in range(len(str(steps[-1]))))) if t <= steps[-1]]
    bar.set_ticks([float(np.log1p(t)) for t in ticks], labels=[str(t) for t in ticks])


def _figure(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> tuple[Figure, NDArray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, **kwargs)).ravel()
    axis: Axes
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes

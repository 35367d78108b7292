"""Dimension and focusing along the depth of a network."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from observatory.dimension.estimates import EstimateOptions, estimates
from observatory.dimension.focusing import weight_focusing
from observatory.dimension.neighbours import samples_not_finite
from observatory.dimension.representations import (
    Activation,
    HiddenLayer,
    Pool,
    hidden_layers,
    representations,
)
from observatory.dimension.strengths import Power
from observatory.dimension.structure import Structure, find_structure
from observatory.dimension.tails import weight_spectrum
from observatory.looking.model import Forward, ModelFunction, Output

SPECTRAL = (
    "alpha", "tail_points", "tail_distance", "weighted_alpha", "log_norm", "spectral_norm", "stable_rank",
    "matrix_entropy", "beyond_edge",
)  # fmt: skip


@dataclass(frozen=True)
class ProfileOptions(EstimateOptions):
    """What is measured along the depth, and how; see also `EstimateOptions`.

    Args:
        layers: regular expression of the layers to look at, searched in the names of hidden weight layers,
            then of all modules; default every hidden weight layer.
        activation: representations after the nonlinearity ("post") or before it ("pre").
        pool: "mean" averages the channels of convolutions over positions.
        q: power of the weights, 1 or 2.
        fold_bn: fold a batch norm into the weights before it.
        max_features: units that are kept of wider layers.
    """

    layers: str | None = None
    activation: Activation = "post"
    pool: Pool = "none"
    q: Power = 2
    fold_bn: bool = True
    max_features: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("activation", Activation), ("pool", Pool), ("q", Power)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {get_args(allowed)}, got {getattr(self, name)!r}")
        if self.max_features < 1:
            raise ValueError(f"max_features must be at least 1, got {self.max_features}")


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """Quantities by name; `observatory.dimension.QUANTITIES` has their definitions."""

    layers: list[str]  # hidden layers, in the order of the calls
    weights: list[str]  # all layers with weights, in that order
    values: Mapping[str, Tensor]  # (layers, ...), or (weights,) for those of the spectra
    log_total: Tensor  # ln Φ over all paths, a scalar; NaN where activations are multiplied
    differences: list[Tensor] = field(default_factory=list)  # in- minus out-strength of each node, by layer

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def rows(self) -> list[dict[str, Any]]:
        """A tidy table: layer, quantity, index within it (Gride's n₁, or a place on a curve), value."""
        found = []
        for name, values in self.values.items():
            names = self.weights if name in SPECTRAL else self.layers
            for layer, row in zip(names, values.reshape(len(values), -1).tolist(), strict=True):
                found += [
                    {"layer": layer, "quantity": name, "index": k, "value": value}
                    for k, value in enumerate(row)
                ]
        return found

    def save(self, path: str | Path) -> None:
        """Write the table as .csv or .json.

        Raises:
            ValueError: for any other ending.
        """
        path, rows = Path(path), self.rows()
        if path.suffix == ".json":
            path.write_text(json.dumps(rows, indent=1) + "\n")
        elif path.suffix == ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, ("layer", "quantity", "index", "value"))
                writer.writeheader()
                writer.writerows(rows)
        else:
            raise ValueError(f"a profile is saved as .csv or .json, not as {path.name}")


def profile(
    model: nn.Module | ModelFunction,
    x: Any,
    targets: Tensor | None = None,
    *,
    forward: Forward | None = None,
    output: Output | None = None,
    **options: Any,
) -> LayerProfile:
    """Dimension of the representation and focusing of the weights in every hidden layer of a network.

    Args:
        model: in whatever mode; it is evaluated in evaluation mode, without gradients.
        x: N inputs, the same for all networks that are to be compared.
        targets: integer classes, (N,), for the estimator "per_class".
        forward: how the model is called, `forward(module, inputs)`.
        output: which part of what it returns is a tensor.
        options: see `ProfileOptions`.

    Raises:
        ValueError: if the network has no hidden layer with weights, a representation is not finite, or there
            are no more than k inputs. A layer that returns the same for all inputs has dimension 0.
    """
    function = ModelFunction.of(model, forward=forward, output=output)
    return measured(function, x, ProfileOptions(**options), targets, strict=True)


def measured(
    function: ModelFunction,
    x: Any,
    options: ProfileOptions,
    targets: Tensor | None = None,
    *,
    strict: bool = False,
) -> LayerProfile:
    """The profile of a model function; without `strict`, NaN for a layer that is not finite."""
    structure = find_structure(function, x)
    layers = hidden_layers(structure, function, options.layers)
    found, active = [], []
    held = representations(
        function, x, layers, structure,
        activation=options.activation, pool=options.pool, max_features=options.max_features,
    )  # fmt: skip
    for layer, h in held:
        _check(layer, h, options, strict=strict)
        found.append(estimates(h, options, targets))
        active.append((h > 0).double().mean(0))
    values = {name: torch.stack([one[name] for one in found]) for name in found[0]}
    values["depth"] = _depth(structure, layers).to(values["units"])
    numbers = [layer.number for layer in layers]
    whole = options.pool == "none" and bool((values["units"] < options.max_features).all())
    gates = active if options.activation == "post" and whole else []
    focusing = weight_focusing(structure, numbers, gates, q=options.q, fold_bn=options.fold_bn)
    return LayerProfile(
        layers=[layer.name for layer in layers],
        weights=[layer.name for layer in structure.layers],
        values=values | focusing.values | spectra(structure),
        log_total=focusing.log_total,
        differences=focusing.differences,
    )


def spectra(structure: Structure) -> dict[str, Tensor]:
    """Spectral exponents and norms of every weight layer by name, (weights,); NaN where it is not finite."""
    rows = []
    for layer in structure.layers:
        if not bool(torch.isfinite(layer.weight).all()):
            rows.append([torch.nan] * len(SPECTRAL))
            continue
        one = weight_spectrum(layer.weight)
        assert not isinstance(one, list)  # convolution="matrix"
        tail = (one.tail.alpha, float(one.tail.tail), one.tail.distance, one.weighted_alpha)
        norms = (one.log_norm, one.spectral_norm, one.stable_rank, one.entropy, float(one.beyond_edge))
        rows.append([*tail, *norms])
    table = torch.tensor(rows, dtype=torch.float64, device=structure.layers[0].weight.device)
    return dict(zip(SPECTRAL, table.unbind(1), strict=True))


def _check(layer: HiddenLayer, h: Tensor, options: ProfileOptions, *, strict: bool) -> None:
    if len(h) <= options.k:
        raise ValueError(f"k={options.k} neighbours are asked of {len(h)} inputs: give more of them")
    if strict and (bad := samples_not_finite(h)):
        raise ValueError(f"layer {layer.name}: {bad} of {len(h)} representations are not finite")


def _depth(structure: Structure, layers: Sequence[HiddenLayer]) -> Tensor:
    """Weight layers up to each hidden one as a share of all on the longest way; other places lie evenly."""
    depths = structure.depths
    total = max(depths)
    return torch.tensor(
        [
            (k + 1) / (len(layers) + 1) if layer.number is None else depths[layer.number - 1] / total
            for k, layer in enumerate(layers)
        ],
        dtype=torch.float64,
    )

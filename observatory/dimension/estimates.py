"""All dimensions of one representation by name, from one search for neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from observatory.dimension.correlation import correlation_dimension
from observatory.dimension.local import levina_bickel
from observatory.dimension.neighbourhoods import class_purity, local_pca_dimension
from observatory.dimension.neighbours import (
    CHUNK_BYTES,
    Neighbours,
    nearest_neighbours,
    samples_not_finite,
)
from observatory.dimension.ratios import gride, two_nn
from observatory.dimension.result import DEPTH, FEWEST, Dimension
from observatory.dimension.spectrum import linear_dimension

Estimator = Literal[
    "participation_ratio",
    "two_nn",
    "levina_bickel",
    "gride",
    "correlation_dimension",
    "local_pca",
    "per_class",
]
DEFAULT: tuple[Estimator, ...] = ("participation_ratio", "two_nn", "levina_bickel", "gride")
SCALES = (1, 2, 4, 8, 16, 32)  # n₁ of Gride
NAMES: dict[Estimator, tuple[str, ...]] = {
    "participation_ratio": (
        "participation_ratio", "participation_ratio_debiased", "components_90", "spectral_rank"
    ),
    "two_nn": ("two_nn", "two_nn_error"),
    "levina_bickel": ("levina_bickel", "levina_bickel_error"),
    "gride": ("gride", "gride_error", "gride_scale"),
    "correlation_dimension": ("correlation_dimension", "correlation_dimension_error"),
    "local_pca": ("local_pca",),
    "per_class": ("class_two_nn", "class_purity"),
}  # fmt: skip
COUNTS = ("units", "points", "dropped")


@dataclass(frozen=True)
class EstimateOptions:
    """Which dimensions, and how.

    Args:
        estimators: of the dimension; "correlation_dimension" searches all pairs once more, "per_class" needs
            targets.
        k: neighbours of Levina and Bickel's estimator.
        precision: of the search for neighbours; default float64 on a CPU, float32 elsewhere.
        chunk_bytes: upper bound of the memory for distances.

    Raises:
        ValueError: if an estimator is unknown or k out of range.
    """

    estimators: Sequence[Estimator] = DEFAULT
    k: int = 20
    precision: Literal["float32", "float64"] | None = None
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        if unknown := [name for name in self.estimators if name not in get_args(Estimator)]:
            raise ValueError(f"unknown estimator {unknown[0]!r}; there are {', '.join(get_args(Estimator))}")
        if self.precision not in (None, "float32", "float64"):
            raise ValueError(f"precision must be 'float32' or 'float64', got {self.precision!r}")
        if not 3 <= self.k <= DEPTH:
            raise ValueError(f"give 3 ≤ k ≤ {DEPTH} neighbours, got k={self.k}")

    @property
    def dtype(self) -> torch.dtype | None:
        return None if self.precision is None else getattr(torch, self.precision)


def estimates(h: Tensor, options: EstimateOptions, targets: Tensor | None = None) -> dict[str, Tensor]:
    """Dimensions of samples × units by name: scalars, and (scales,) of Gride.

    NaN where a representation is not finite or too few of its points are valid; 0 where all are the same.

    Args:
        h: (N, D), N > k.
        options: which and how.
        targets: integer classes, (N,), for "per_class".
    """
    h = h.double()
    scales = [n for n in SCALES if 2 * n < len(h)]
    found = _unknown(h, len(scales), options)
    if samples_not_finite(h):
        return found
    near = nearest_neighbours(
        h, min(DEPTH, len(h) - 1), dtype=options.dtype, chunk_bytes=options.chunk_bytes, indices=True
    )
    found["points"], found["dropped"] = h.new_tensor(float(len(near))), h.new_tensor(float(near.dropped))
    if len(near) < 2:
        return {key: v if key in COUNTS else torch.zeros_like(v) for key, v in found.items()}
    if "participation_ratio" in options.estimators:
        linear = linear_dimension(h)
        found["participation_ratio"], found["participation_ratio_debiased"] = (
            linear.participation_ratio,
            linear.debiased,
        )
        found["components_90"], found["spectral_rank"] = linear.components.double(), linear.entropy_rank
    found |= _of_neighbours(near, scales, options)
    if "per_class" in options.estimators and targets is not None:
        found["class_two_nn"] = _within_classes(h, targets, options)
        found["class_purity"] = class_purity(near, targets)
    return found


def _unknown(h: Tensor, scales: int, options: EstimateOptions) -> dict[str, Tensor]:
    nan = h.new_full((), torch.nan)
    names = [key for estimator in options.estimators for key in NAMES[estimator]]
    found = {key: nan.expand(scales) if key.startswith("gride") else nan for key in (*names, *COUNTS)}
    return found | {"units": h.new_tensor(float(h.shape[1]))}


def _of_neighbours(near: Neighbours, scales: list[int], options: EstimateOptions) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    depth = near.distances.shape[1]
    if "two_nn" in options.estimators:
        found |= _named("two_nn", two_nn(near))
    if "levina_bickel" in options.estimators and depth >= options.k:
        found |= _named("levina_bickel", levina_bickel(near, k=options.k))
    if "gride" in options.estimators and depth >= 2 * scales[-1]:
        curve = gride(near, n1=scales)
        found |= _named("gride", curve) | {"gride_scale": curve.near}
    if "correlation_dimension" in options.estimators and depth >= 20:
        found |= _named("correlation_dimension", correlation_dimension(near, dtype=options.dtype))
    if "local_pca" in options.estimators and depth >= 50:
        found["local_pca"] = local_pca_dimension(near)
    return found


def _named(name: str, dimension: Dimension) -> dict[str, Tensor]:
    return {name: dimension.value, f"{name}_error": dimension.standard_error}


def _within_classes(h: Tensor, targets: Tensor, options: EstimateOptions) -> Tensor:
    """Mean over classes of TwoNN within each; classes of fewer than 20 points are left out."""
    found = []
    for label in targets.unique().tolist():
        own = h[targets == label]
        if len(own) > FEWEST:
            near = nearest_neighbours(own, min(16, len(own) - 1), dtype=options.dtype)
            found.append(two_nn(near).value if len(near) > 1 else h.new_zeros(()))
    return torch.stack(found).nanmean() if found else h.new_full((), torch.nan)

"""Dimension of hidden layers and focusing of the weights, during a Lightning run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from typing_extensions import Unpack

from observatory.callbacks.callback import ObservingCallback
from observatory.callbacks.options import ObservingOptions, split
from observatory.dimension import instrument
from observatory.dimension.estimates import DEFAULT, Estimator
from observatory.dimension.neighbours import CHUNK_BYTES
from observatory.dimension.representations import Activation, Pool
from observatory.dimension.strengths import Power


class LayerDimensionality(ObservingCallback):
    """Dimension of the representation and focusing of the weights in every hidden layer.

    Args:
        layers: regular expression of the layers to look at, searched in the names of hidden weight layers,
            then of all modules; default every hidden weight layer.
        activation: representations after the nonlinearity ("post") or before it ("pre").
        pool: "mean" averages the channels of convolutions over positions.
        estimators: of the dimension: "participation_ratio", "two_nn", "levina_bickel", "gride",
            "correlation_dimension", "local_pca", "per_class".
        k: neighbours of Levina and Bickel's estimator; the probe must have more examples.
        q: power of the weights, 1 or 2.
        fold_bn: fold a batch norm into the weights before it.
        max_features: units that are kept of wider layers.
        precision: of the search for neighbours; default float64 on a CPU, float32 elsewhere.
        chunk_bytes: upper bound of the memory for distances.
        options: see `ObservingOptions`.

    Raises:
        ValueError: if an option is none of those it can be.
    """

    def __init__(
        self,
        *,
        layers: str | None = None,
        activation: Activation = "post",
        pool: Pool = "none",
        estimators: Sequence[Estimator] = DEFAULT,
        k: int = 20,
        q: Power = 2,
        fold_bn: bool = True,
        max_features: int = 8192,
        precision: Literal["float32", "float64"] | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        **options: Unpack[ObservingOptions],
    ) -> None:
        looking, watching = split(options)
        one = instrument.LayerDimensionality(
            layers=layers, activation=activation, pool=pool, estimators=tuple(estimators), k=k, q=q,
            fold_bn=fold_bn, max_features=max_features, precision=precision, chunk_bytes=chunk_bytes,
            **looking,
        )  # fmt: skip
        super().__init__([one], **watching)

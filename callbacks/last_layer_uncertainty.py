"""Error bars of the last layer, during a Lightning run."""

from __future__ import annotations

from functools import partial
from typing import Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from observatory.callbacks.callback import ObservingCallback
from observatory.callbacks.options import ObservingOptions, split
from observatory.callbacks.tested_uncertainty import foreign_loader
from observatory.uncertainty import instrument
from observatory.uncertainty.gp import Noise


class LastLayerUncertainty(ObservingCallback):
    """Calibration, effective dimension and detection of foreign inputs, from the last layer's features.

    Args:
        rows: number of training examples per look, scaled to all; default all of them.
        reg: ς², the number added to the diagonal of the Gram matrix; "auto" is 10⁻⁶ of its mean.
        noise: of a regression: "none", "additive" or "constant".
        last_layer: name of the layer; default the Linear that is executed last.
        elsewhere: inputs from another distribution: a loader, or a data module of which the test split is
            taken (the validation split where there is none).
        seed: of the drawn training examples.
        options: see `ObservingOptions`; the probe is of the validation split.
    """

    def __init__(
        self,
        *,
        rows: int | None = None,
        reg: float | Literal["auto"] = "auto",
        noise: Noise = "none",
        last_layer: str | None = None,
        elsewhere: LightningDataModule | DataLoader | None = None,
        seed: int = 0,
        **options: Unpack[ObservingOptions],
    ) -> None:
        looking, watching = split(options)
        one = instrument.LastLayerUncertainty(
            rows=rows, reg=reg, noise=noise, last_layer=last_layer, seed=seed,
            elsewhere=None if elsewhere is None else partial(foreign_loader, elsewhere), **looking,
        )  # fmt: skip
        super().__init__([one], **watching)

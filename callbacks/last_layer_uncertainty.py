"""Error bars of the last layer, during a Lightning run."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader
from typing_extensions import Unpack, override

from observatory.callbacks.callback import ObservingCallback, _loader
from observatory.callbacks.options import ObservingOptions, split
from observatory.callbacks.tested_uncertainty import foreign_loader
from observatory.looking.probe import Probe, ProbeRequest, draw_probe
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
        self.uncertainty = instrument.LastLayerUncertainty(
            rows=rows, reg=reg, noise=noise, last_layer=last_layer, seed=seed, **looking
        )
        self.elsewhere = elsewhere
        super().__init__([self.uncertainty], **watching)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.uncertainty.trains_on(_loader(trainer, "train"))
        if self.elsewhere is not None and self.uncertainty.elsewhere is None:
            self.uncertainty.elsewhere = self._foreign(pl_module)
        super().on_train_start(trainer, pl_module)

    def _foreign(self, pl_module: LightningModule) -> Probe:
        probe = self.uncertainty.probe
        request = ProbeRequest(len(probe) if isinstance(probe, Probe) else probe.size)
        loader = foreign_loader(self.elsewhere)
        return draw_probe(loader, request, inputs=self.uncertainty.inputs).to(pl_module.device)

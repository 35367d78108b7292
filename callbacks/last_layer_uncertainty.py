"""Error bars of the last layer, during a Lightning run and at its test."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import Unpack, override

from observatory.callbacks.callback import ObservingCallback, _loader, loader_of, record_directory
from observatory.callbacks.options import ObservingOptions, split
from observatory.looking.live import LiveModel
from observatory.looking.probe import Probe, ProbeRequest, draw_probe
from observatory.looking.undisturbed import undisturbed
from observatory.uncertainty import LastLayerClassifier, LastLayerGP, instrument
from observatory.uncertainty.examples import Examples
from observatory.uncertainty.gp import Noise
from observatory.uncertainty.judging import Judged, judge_classes, judge_numbers


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
        judge: when the Trainer tests, fit to all training examples, calibrate on the validation split, log
            the scores of the test split as test/..., in units of the data module's `target_std` if it has
            one, and keep its rows beside the record.
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
        judge: bool = False,
        **options: Unpack[ObservingOptions],
    ) -> None:
        looking, watching = split(options)
        self.uncertainty = instrument.LastLayerUncertainty(
            rows=rows, reg=reg, noise=noise, last_layer=last_layer, seed=seed, **looking
        )
        self.elsewhere, self.judge = elsewhere, judge
        super().__init__([self.uncertainty], **watching)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.uncertainty.trains_on(_loader(trainer, "train"))
        if self.elsewhere is not None and self.uncertainty.elsewhere is None:
            self.uncertainty.elsewhere = self._foreign(pl_module)
        super().on_train_start(trainer, pl_module)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.judge:
            judged = self._judged(trainer, pl_module)
            scores = {f"test/{name}": value for name, value in judged.scores.items()}
            pl_module.log_dict(scores, batch_size=1, rank_zero_only=False)
            if trainer.is_global_zero:
                judged.save(record_directory(trainer) / self.uncertainty.name / "test_rows.npz")

    def _judged(self, trainer: Trainer, pl_module: LightningModule) -> Judged:
        """The network as it is now, fitted to all training examples, scored on the test split."""
        uncertainty, data = self.uncertainty, getattr(trainer, "datamodule", None)
        train = trainer.train_dataloader if data is None else loader_of(data.train_dataloader())
        val = trainer.val_dataloaders if data is None else loader_of(data.val_dataloader())
        function = LiveModel(pl_module).function(forward=uncertainty.forward, output=uncertainty.output)
        options: dict[str, Any] = {
            "reg": uncertainty.reg,
            "last_layer": uncertainty.last_layer,
            "forward": uncertainty.forward,
            "output": uncertainty.output,
        }

        def passes(loader: Any) -> Any:
            examples = Examples(loader_of(loader), inputs=uncertainty.inputs, targets=uncertainty.targets)
            return examples.batches(function.device, None)

        with undisturbed(function.device):
            test = loader_of(trainer.test_dataloaders)
            if _integers(passes(test)):
                there = foreign_loader(self.elsewhere)
                there = None if there is None else passes(there)
                classifier = LastLayerClassifier(function.module(), **options)
                return judge_classes(classifier, passes(train), passes(val), passes(test), there)
            gp = LastLayerGP(function.module(), noise=uncertainty.noise, **options)
            unit = float(getattr(data, "target_std", 1.0))
            return judge_numbers(gp, passes(train), passes(val), passes(test), unit=unit)

    def _foreign(self, pl_module: LightningModule) -> Probe:
        probe = self.uncertainty.probe
        request = ProbeRequest(len(probe) if isinstance(probe, Probe) else probe.size)
        loader = foreign_loader(self.elsewhere)
        return draw_probe(loader, request, inputs=self.uncertainty.inputs).to(pl_module.device)


def _integers(batches: Any) -> bool:
    targets = next(iter(batches))[1]
    return isinstance(targets, Tensor) and not targets.is_floating_point()


def foreign_loader(elsewhere: Any) -> Any:
    """The loader of a data module's test split, or the loader itself."""
    if not isinstance(elsewhere, LightningDataModule):
        return elsewhere
    elsewhere.prepare_data()
    elsewhere.setup("test")
    has_test = type(elsewhere).test_dataloader is not LightningDataModule.test_dataloader
    return loader_of(elsewhere.test_dataloader() if has_test else elsewhere.val_dataloader())

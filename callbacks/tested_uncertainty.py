"""Error bars of the last layer, judged when the Trainer tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from observatory.callbacks.callback import loader_of, record_directory
from observatory.looking import Forward, ModelFunction, Output
from observatory.looking.live import LiveModel
from observatory.looking.undisturbed import undisturbed
from observatory.training import Ensemble
from observatory.uncertainty import LastLayerClassifier, LastLayerGP
from observatory.uncertainty.examples import Examples
from observatory.uncertainty.gp import Noise
from observatory.uncertainty.judging import Judged, judge_classes, judge_numbers, save_judged


class TestedUncertainty(Callback):
    """Fit to all training examples, calibrate on the validation split, and score the test split.

    Means are logged as test/..., numbers in units of the data module's `target_std` where it has one; scores
    of each network and all rows go to `uncertainty/test_rows.npz` beside the record. An `Ensemble` is judged
    member by member.

    Args:
        reg: ς², the number added to the diagonal of the Gram matrix; "auto" is 10⁻⁶ of its mean.
        noise: of a regression: "none", "additive" or "constant".
        last_layer: name of the layer; default the Linear that is executed last.
        elsewhere: inputs from another distribution: a loader, or a data module of which the test split is
            taken (the validation split where there is none).
        inputs, targets, forward, output: see `ObservingOptions`.
    """

    __test__ = False  # no test class, whatever its name

    def __init__(
        self,
        *,
        reg: float | Literal["auto"] = "auto",
        noise: Noise = "none",
        last_layer: str | None = None,
        elsewhere: LightningDataModule | DataLoader | None = None,
        inputs: Callable[[Any], Any] | None = None,
        targets: Callable[[Any], Any] | None = None,
        forward: Forward | None = None,
        output: Output | None = None,
    ) -> None:
        self.noise, self.elsewhere, self.inputs, self.targets = noise, elsewhere, inputs, targets
        self.options: dict[str, Any] = {
            "reg": reg, "last_layer": last_layer, "forward": forward, "output": output,
        }  # fmt: skip

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None) or pl_module
        members = data.members if isinstance(pl_module, Ensemble) else [data]
        with undisturbed(pl_module.device):
            judged = [
                self._judged(function, member)
                for function, member in zip(_functions(pl_module), members, strict=True)
            ]
        means = {
            f"test/{name}": sum(one.scores[name] for one in judged) / len(judged) for name in judged[0].scores
        }
        pl_module.log_dict(means, batch_size=1)
        if trainer.is_global_zero:
            save_judged(judged, record_directory(trainer) / "uncertainty" / "test_rows.npz")

    def _judged(self, function: ModelFunction, data: Any) -> Judged:
        def passes(loader: Any) -> Any:
            examples = Examples(loader_of(loader), inputs=self.inputs, targets=self.targets)
            dtype = next(iter(function.parameters.values())).dtype
            return examples.batches(function.device, torch.promote_types(dtype, torch.float32))

        train, val, test = (
            passes(make()) for make in (data.train_dataloader, data.val_dataloader, data.test_dataloader)
        )
        if _integers(passes(data.test_dataloader())):
            there = None if self.elsewhere is None else passes(foreign_loader(self.elsewhere))
            return judge_classes(
                LastLayerClassifier(function.module(), **self.options), train, val, test, there
            )
        unit = float(getattr(data, "target_std", 1.0))
        gp = LastLayerGP(function.module(), noise=self.noise, **self.options)
        return judge_numbers(gp, train, val, test, unit=unit)


def _functions(module: LightningModule) -> list[ModelFunction]:
    if isinstance(module, Ensemble):
        return [ModelFunction.of(member.eval()) for member in module.members()]
    return [LiveModel(module).function()]


def _integers(batches: Any) -> bool:
    targets = next(iter(batches))[1]
    return isinstance(targets, Tensor) and not targets.is_floating_point()


def foreign_loader(elsewhere: Any) -> Any:
    """The loader of a data module's test split (or validation split), or the loader itself."""
    if not isinstance(elsewhere, LightningDataModule):
        return elsewhere
    elsewhere.prepare_data()
    elsewhere.setup("test")
    has_test = type(elsewhere).test_dataloader is not LightningDataModule.test_dataloader
    return loader_of(elsewhere.test_dataloader() if has_test else elsewhere.val_dataloader())

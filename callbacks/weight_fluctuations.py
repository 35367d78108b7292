"""Fluctuations of the weights and the loss landscape below them, during a Lightning run."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from typing_extensions import Unpack, override

from observatory.callbacks.callback import ObservingCallback
from observatory.callbacks.options import ObservingOptions, split
from observatory.solvable.online_regression import Sampling
from observatory.weights import batch_sampling, instrument
from observatory.weights.analysis import Basis
from observatory.weights.recorder import Storage


class WeightFluctuations(ObservingCallback):
    """Variance, correlation time, curvature, flatness and noise of the weights along leading directions.

    How batches are drawn is read from the Trainer's loader; a loader that draws in a way of its own, and
    gradients that are clipped, leave temperatures and irreversibility out unless all three of batch_size,
    samples and sampling are given.

    Args:
        window: (start, stop) in `unit`, stop not included, or "auto": `length` snapshots from when the run
            has come to rest (plain SGD only).
        unit: of the window, "steps" or "epochs" (counted from 0).
        every: steps between snapshots.
        length: snapshots of an "auto" window.
        rest: steps of the stationarity test of an "auto" window.
        directions: number of directions.
        basis: "components" of the trajectory, leading eigenvectors of the "hessian", or "random" directions.
        storage: "auto" keeps all snapshots if they fit into `memory`; "subset", "sketch" and "directions"
            keep less (see `observatory.weights.recorder`).
        memory: bytes for the snapshots.
        precision: of the stored differences.
        keep_on: "device" of the weights, or "cpu".
        batch_size: S, examples per update over all processes and accumulated batches.
        samples: N, examples in the training set.
        sampling: how the examples of a batch are drawn.
        first: first principal component in the fit of ψ; default 1, or 2 if the first is a drift.
        last: last one in the fit.
        seed: of random directions, coordinates and resampling.
        options: see `ObservingOptions`.

    Raises:
        ValueError: if the window is empty or too short.
    """

    def __init__(
        self,
        *,
        window: tuple[int, int] | Literal["auto"] = "auto",
        unit: Literal["steps", "epochs"] = "steps",
        every: int = 1,
        length: int = 1000,
        rest: int = 500,
        directions: int = 20,
        basis: Basis = "components",
        storage: Storage | Literal["auto"] = "auto",
        memory: float = 2.0**31,
        precision: Literal["float32", "bfloat16"] = "float32",
        keep_on: Literal["device", "cpu"] = "device",
        batch_size: int | None = None,
        samples: int | None = None,
        sampling: Sampling | None = None,
        first: int | None = None,
        last: int | None = None,
        seed: int = 0,
        **options: Unpack[ObservingOptions],
    ) -> None:
        looking, watching = split(options)
        self.fluctuations = instrument.WeightFluctuations(
            window=window, unit=unit, every=every, length=length, rest=rest, directions=directions,
            basis=basis, storage=storage, memory=memory, precision=precision, keep_on=keep_on,
            batch_size=batch_size, samples=samples, sampling=sampling, first=first, last=last, seed=seed,
            **looking,
        )  # fmt: skip
        super().__init__([self.fluctuations], **watching)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = trainer.train_dataloader
        if isinstance(loader, DataLoader) and not trainer.gradient_clip_val:
            try:
                size, samples, sampling = batch_sampling(loader)
                self.fluctuations.draws(size * trainer.accumulate_grad_batches, samples, sampling)
            except (ValueError, TypeError):  # a loader, or a data set, that cannot say
                pass
        super().on_train_start(trainer, pl_module)

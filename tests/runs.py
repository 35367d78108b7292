"""Small Lightning runs for tests, and everything about them that a watcher must not change."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(pl.LightningModule):
    """Batch norm, dropout, a submodule frozen with `.eval()`: everything a look could disturb."""

    def __init__(self, optimizer: str = "adamw", compile: bool = False, nan_from: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(16, 3)
        )
        self.frozen = nn.BatchNorm1d(6)
        self.optimizer = optimizer
        self.nan_from = nan_from
        if compile:
            self.net.compile(backend="aot_eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.frozen(x))

    def on_train_epoch_start(self) -> None:
        self.frozen.eval()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def on_train_batch_end(self, *_: Any) -> None:
        if self.nan_from is not None and self.global_step >= self.nan_from:
            with torch.no_grad():
                self.net[0].weight.fill_(torch.nan)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "lbfgs":
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Metrics(pl.Callback):
    """Every training metric, whenever one was logged."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def _keep(self, trainer: pl.Trainer) -> None:
        own = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("train", "val"))}
        self.seen.append(own)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._keep(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._keep(trainer)


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at its end."""

    weights: dict[str, Tensor]  # with buffers
    optimizer: Any
    modes: list[bool]
    streams: tuple
    metrics: list[dict[str, float]]

    def assert_same(self, other: Snapshot) -> None:
        """Bit for bit."""
        assert bits(self.weights) == bits(other.weights)
        assert bits(self.optimizer) == bits(other.optimizer)
        assert self.modes == other.modes
        assert self.streams == other.streams
        assert repr(self.metrics) == repr(other.metrics)  # repr: NaN equals NaN


def bits(tree: Any) -> list:
    """Leaves of a nested structure, tensors as bytes."""
    return [
        leaf.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        if isinstance(leaf, Tensor) and leaf.ndim
        else repr(leaf)
        for leaf in torch.utils._pytree.tree_leaves(tree)
    ]


def streams() -> tuple:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def examples(n: int = 96) -> TensorDataset:
    """Three noisy clusters in six dimensions."""
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(n) % 3
    return TensorDataset(torch.randn(n, 6, generator=generator) + y[:, None], y)


def loaders(batch_size: int = 8) -> tuple[DataLoader, DataLoader]:
    return DataLoader(examples(), batch_size, shuffle=True), DataLoader(examples(24), batch_size)


def trainer(root: Path, callbacks: Sequence[pl.Callback] = (), **kwargs: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
        "max_epochs": 2,
        "default_root_dir": root,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(callbacks=list(callbacks), **(quiet | kwargs))


def fit(
    root: Path,
    callbacks: Sequence[pl.Callback] = (),
    *,
    module: Callable[[], pl.LightningModule] = Classifier,
    ckpt_path: Path | None = None,
    **kwargs: Any,
) -> Snapshot:
    """Train from a fixed seed and return everything that must not depend on who watched."""
    pl.seed_everything(5, verbose=False)
    model, metrics = module(), Metrics()
    run = trainer(root, [*callbacks, metrics], **kwargs)
    run.fit(model, *loaders(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return Snapshot(
        weights={k: v.clone() for k, v in model.state_dict().items()},
        optimizer=[o.state_dict() for o in run.optimizers],
        modes=[m.training for m in model.modules()],
        streams=streams(),
        metrics=metrics.seen,
    )

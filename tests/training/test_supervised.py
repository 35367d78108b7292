"""A network learns from inputs and targets."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.data import Digits
from observatory.training import MLP, ConvNet, Supervised

DIGITS = """
seed_everything: 0
model:
  class_path: observatory.training.Supervised
  init_args:
    network:
      class_path: observatory.training.ConvNet
      init_args: {image: [1, 8, 8], channels: [32, 64], classes: 10}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 2.0e-3, weight_decay: 0.1}}
    scheduler: {class_path: torch.optim.lr_scheduler.CosineAnnealingLR, init_args: {T_max: 40}}
data:
  class_path: observatory.data.Digits
trainer: {accelerator: cpu, logger: false, enable_checkpointing: false}
"""


def quiet_trainer(folder: Path, **options: object) -> pl.Trainer:
    given = {"max_epochs": 1, "enable_checkpointing": False, "log_every_n_steps": 1} | options
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **given,  # type: ignore[arg-type]
    )


def test_a_linear_network_reaches_the_least_squares_solution(
    tmp_path: Path, generator: torch.Generator
) -> None:
    x = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64) + 0.3
    model = Supervised(nn.Linear(3, 1, dtype=torch.float64), "mse", lambda p: torch.optim.SGD(p, lr=0.1))
    pairs = DataLoader(TensorDataset(x, y), 64)
    quiet_trainer(tmp_path, max_epochs=200, check_val_every_n_epoch=200).fit(model, pairs, pairs)
    design = torch.cat([x, torch.ones(64, 1)], 1)
    expected = torch.linalg.lstsq(design, y).solution[:, 0]
    fitted = torch.cat([model.network.weight[0], model.network.bias]).detach()
    # the slowest mode decays by 1 - 0.1·2·λ_min ≈ 0.86 in each of 200 steps
    torch.testing.assert_close(fitted, expected, atol=1e-10, rtol=0)


def test_metrics_are_means_over_the_whole_split(tmp_path: Path) -> None:
    data = Digits(flat=True, batch_size=100)
    model = Supervised(MLP([64, 10]))
    trainer = quiet_trainer(tmp_path)
    trainer.fit(model, data)
    assert {"train/loss", "val/loss", "val/accuracy"} <= set(trainer.callback_metrics)
    (logged,) = trainer.test(model, data, verbose=False)
    x, y = data.dataset("test").tensors
    output = model(x)
    assert logged["test/loss"] == pytest.approx(nn.functional.cross_entropy(output, y).item(), rel=1e-5)
    assert logged["test/accuracy"] == pytest.approx((output.argmax(1) == y).double().mean().item(), rel=1e-6)


def test_the_schedule_multiplies_the_rate(tmp_path: Path) -> None:
    model = Supervised(
        MLP([64, 10]),
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        interval="step",
    )
    trainer = quiet_trainer(tmp_path, max_steps=3)
    trainer.fit(model, Digits(flat=True))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.125)


def test_outputs_and_targets_of_different_shapes_are_refused(tmp_path: Path) -> None:
    pairs = DataLoader(TensorDataset(torch.randn(8, 3), torch.randn(8)), 8)
    with pytest.raises(ValueError, match=r"outputs of shape \(8, 1\).*targets of shape \(8,\)"):
        quiet_trainer(tmp_path).fit(Supervised(nn.Linear(3, 1), "mse"), pairs, pairs)


def test_networks_have_the_shapes_they_name() -> None:
    images = torch.zeros(5, 3, 32, 32)
    assert ConvNet((3, 32, 32), [4, 8, 16], 10)(images).shape == (5, 10)
    assert ConvNet((3, 32, 32), [4, 8, 16], 10).readout.in_features == 16 * 4 * 4
    assert MLP([3072, 7, 2], "tanh", dropout=0.5)(images).shape == (5, 2)
    with pytest.raises(ValueError, match="halve an image of 8 x 8 to nothing"):
        ConvNet((1, 8, 8), [4] * 4, 10)
    with pytest.raises(ValueError, match="activation must be one of relu"):
        MLP([2, 2, 2], "swoosh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="widths are those"):
        MLP([2])


def test_an_experiment_needs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["observatory"])
    for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # set by the seed; put back afterwards
        monkeypatch.setenv(variable, "0")
    config = tmp_path / "digits.yaml"
    config.write_text(DIGITS)
    cli = LightningCLI(
        pl.LightningModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        run=False,
        args=["--config", str(config), "--data.subset", "100"],
    )
    made = cli.model.configure_optimizers()
    assert isinstance(made["optimizer"], torch.optim.AdamW)
    assert made["lr_scheduler"]["scheduler"].T_max == 40
    x, _ = next(iter(cli.datamodule.train_dataloader()))
    assert cli.model(x).shape == (64, 10)
    assert len(cli.datamodule.dataset("train")) == 100


@pytest.mark.slow
def test_a_small_convolutional_network_learns_the_digits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = Digits()
    model = Supervised(
        ConvNet((1, 8, 8), [32, 64], 10),
        optimizer=lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1),
        scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40),
    )
    trainer = quiet_trainer(tmp_path, max_epochs=40)
    trainer.fit(model, data)
    (logged,) = trainer.test(model, data, verbose=False)
    assert logged["test/accuracy"] >= 0.97  # 0.975 to 0.994 over seeds; 359 digits: σ = 0.6 %

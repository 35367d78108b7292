"""Modules that know their loss, and methods that follow no gradient, in the one loop."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.data import Steps
from observatory.training import Fit, Iterate


class Decay(nn.Module):
    """x(t) = exp(-k t), fitted to observations."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, t: Tensor) -> Tensor:
        return torch.exp(-self.rate * t)

    def training_loss(self, batch: list[Tensor]) -> Tensor:
        return (self(batch[0]) - batch[1]).square().mean()


class MeasuredDecay(Decay):
    def validation_metrics(self, batch: list[Tensor]) -> dict[str, Tensor | float]:
        return {"mean_time": batch[0].mean(), "half_life": float(torch.log(torch.tensor(2.0)) / self.rate)}


class Bisection(nn.Module):
    """Closes in on √2 by halving an interval: state in buffers, no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("interval", torch.tensor([1.0, 2.0], dtype=torch.float64))

    def advance(self, batch: Any) -> dict[str, Tensor] | None:
        middle = self.interval.mean()
        self.interval[int(middle.square() > 2)] = middle
        return {"width": self.interval.diff()[0]}


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.fixture
def observations() -> DataLoader:
    t = torch.linspace(0, 3, 50, dtype=torch.float64)
    return DataLoader(TensorDataset(t, torch.exp(-0.7 * t)), 20)  # the last batch has 10


def test_the_rate_of_an_exponential_decay_is_found(tmp_path: Path, observations: DataLoader) -> None:
    fit = Fit(Decay(), lambda p: torch.optim.Adam(p, lr=0.02))
    trainer(tmp_path, max_epochs=150).fit(fit, observations)
    assert fit.model.rate.item() == pytest.approx(0.7, abs=1e-5)  # noiseless data: Adam converges
    assert torch.equal(fit(torch.ones(3)), fit.model(torch.ones(3)))


def test_validation_metrics_are_means_over_examples(tmp_path: Path, observations: DataLoader) -> None:
    fit = Fit(MeasuredDecay(), lambda p: torch.optim.SGD(p, lr=0.0))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(fit, observations, observations)
    assert run.callback_metrics["val/mean_time"].item() == pytest.approx(1.5, rel=1e-6)  # float32 metrics
    assert run.callback_metrics["val/half_life"].item() == pytest.approx(6.931472, rel=1e-6)
    assert run.test(fit, observations, verbose=False)[0].keys() == {"test/mean_time", "test/half_life"}


def test_a_fit_can_be_copied(observations: DataLoader) -> None:
    fit = Fit(MeasuredDecay())
    twin = copy.deepcopy(fit)
    twin.model.rate.data.fill_(5.0)
    assert twin.validation_step.__self__ is twin
    assert fit.model.rate.item() == pytest.approx(0.1)


def test_an_iterative_method_advances_once_per_batch(tmp_path: Path) -> None:
    method = Bisection()
    run = trainer(tmp_path, max_epochs=4)
    run.fit(Iterate(method), Steps(10))
    assert run.global_step == 40
    assert method.interval.diff().item() == pytest.approx(2.0**-40, rel=1e-3)  # eps·√2 beside 2⁻⁴⁰
    assert method.interval[0] <= 2**0.5 <= method.interval[1]
    assert run.callback_metrics["train/width"].item() == pytest.approx(2.0**-40, rel=1e-3)


def test_modules_without_the_method_asked_for_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Linear has no training_loss\(batch\)"):
        Fit(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"Linear has no advance\(batch\)"):
        Iterate(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Steps(0)

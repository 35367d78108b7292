"""Every kind of loop that Lightning offers is watched rightly, or says which argument to set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from contract import EVERY_STEP
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from runs import Classifier, bits, examples, fit, loaders, streams, trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from observatory.callbacks import CollectiveVariables
from observatory.looking import ProbeRequest
from observatory.records import Run, open_run

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
STEPS = list(range(13))  # of one epoch of 96 examples in batches of 8


def kernel(**options: Any) -> CollectiveVariables:
    return CollectiveVariables(**(EVERY_STEP | {"probe": 12} | options))


def record(root: Path, number: int = 0) -> Run:
    return open_run(root / f"observatory/run_{number}")


class Quiet(Classifier):
    """Logs nothing, as `barebones` asks."""

    def training_step(self, batch: Any, _: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])


class Adversaries(pl.LightningModule):
    """Manual optimisation of two networks with an optimizer each, and no `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(6, 6), nn.Linear(6, 2)

    def training_step(self, batch: Any, _: int) -> None:
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        first.zero_grad()
        self.manual_backward(self.critic(self.generator(batch[0])).square().mean())
        first.step()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        second.zero_grad()
        self.manual_backward(self.critic(batch[0]).sub(1).square().mean())
        second.step()
        self.untoggle_optimizer(second)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.generator, self.critic)]


def adversaries(root: Path, *callbacks: pl.Callback) -> list:
    pl.seed_everything(5, verbose=False)
    module = Adversaries()
    trainer(root, callbacks, max_epochs=1).fit(module, loaders()[0])
    return bits([module.state_dict(), streams()])


def test_two_optimizers_by_hand(tmp_path):
    """Lightning counts the steps of both: a batch moves the clock by two."""
    watched = adversaries(tmp_path / "a", kernel(forward=lambda m, x: m.critic(m.generator(x))))
    assert watched == adversaries(tmp_path / "b")
    trace = record(tmp_path / "a")["ntk/trace"]
    assert trace.steps.tolist() == list(range(0, 25, 2)) and np.isfinite(trace.values).all()


def test_module_without_forward_names_the_argument_to_set(tmp_path):
    said = (
        r"'ntk' is switched off, training goes on: TypeError: Adversaries cannot be called with a Tensor of "
    )
    said += r"shape \(\d+, 6\) .*missing the required \"forward\" function.*say how with forward="
    with pytest.warns(UserWarning, match=said):
        watched = adversaries(tmp_path / "a", kernel(strict=False))
    assert watched == adversaries(tmp_path / "b")


class Late(Classifier):
    """Makes its layers in `configure_model`."""

    def __init__(self) -> None:
        pl.LightningModule.__init__(self)
        self.net, self.optimizer, self.nan_from = None, "sgd", None

    def configure_model(self) -> None:
        if self.net is None:
            made = Classifier()
            self.net, self.frozen = made.net, made.frozen


class Early(Classifier):
    def __init__(self) -> None:
        super().__init__(optimizer="sgd")


def test_layers_made_in_configure_model_are_watched_like_others(tmp_path):
    fit(tmp_path / "late", [kernel()], module=Late, max_epochs=1)
    late = record(tmp_path / "late")["ntk/trace"]
    fit(tmp_path / "early", [kernel()], module=Early, max_epochs=1)
    early = record(tmp_path / "early")["ntk/trace"]
    assert late.steps.tolist() == early.steps.tolist() == STEPS
    # layers are drawn from the same stream, but later: the loader's order is another from the first batch on
    assert late.values[0] == early.values[0]


def test_lazy_layers_are_watched_from_the_first_update_on(tmp_path):
    class Lazy(Quiet):
        def __init__(self) -> None:
            super().__init__(optimizer="sgd")
            self.net = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3))

    options = {"module": Lazy, "max_epochs": 1, "num_sanity_val_steps": 0}
    plain = fit(tmp_path / "b", **options)
    fit(tmp_path / "a", [kernel()], **options).assert_same(plain)
    assert record(tmp_path / "a")["ntk/trace"].steps.tolist() == STEPS[1:]


def test_barebones_run_is_watched(tmp_path):
    pl.seed_everything(5, verbose=False)
    run = pl.Trainer(
        barebones=True, max_epochs=1, default_root_dir=tmp_path, callbacks=[kernel()], accelerator="cpu"
    )
    run.fit(Quiet(), loaders()[0])
    assert record(tmp_path)["ntk/trace"].steps.tolist() == STEPS


@pytest.mark.parametrize("nothing", [{"limit_train_batches": 0}, {"max_steps": 0}, {"max_epochs": 0}])
def test_run_without_an_update_leaves_no_record(tmp_path, nothing):
    fit(tmp_path, [kernel()], **nothing)
    assert not (tmp_path / "observatory").exists()


def test_sanity_check_is_not_looked_at(tmp_path):
    """Nothing exists yet when validation runs for the first time."""
    seen = []

    class Noting(Classifier):
        def validation_step(self, batch: Any, number: int) -> None:
            super().validation_step(batch, number)
            seen.append((self.trainer.sanity_checking, (tmp_path / "observatory").exists()))

    fit(tmp_path, [kernel()], module=Noting, max_epochs=1)
    assert (True, False) in seen and (False, True) in seen
    assert (True, True) not in seen and (False, False) not in seen


def test_fit_after_validate_is_a_fit(tmp_path):
    pl.seed_everything(5, verbose=False)
    run, module = trainer(tmp_path, [kernel()], max_epochs=1), Classifier()
    run.validate(module, loaders()[1], verbose=False)
    run.fit(module, *loaders())
    run.test_loop.verbose = False
    assert record(tmp_path)["ntk/trace"].steps.tolist() == STEPS


def test_two_fits_of_two_models_are_two_records(tmp_path):
    callback = kernel()
    for number in range(2):
        pl.seed_everything(number, verbose=False)
        module = Classifier()
        trainer(tmp_path, [callback], max_epochs=1).fit(module, *loaders())
        run = record(tmp_path, number)
        assert run["ntk/trace"].steps.tolist() == STEPS
        assert run["ntk/distance"].values[0] == pytest.approx(
            0, abs=1e-12
        )  # measured from its own first look
    assert record(tmp_path, 0)["ntk/trace"].values[0] != record(tmp_path, 1)["ntk/trace"].values[0]


def test_budget_of_a_second_fit_remembers_the_first():
    station = kernel(max_overhead=0.05).observer.stations[0]
    station.budget.begin()
    station.budget._begun -= 100  # seconds of training
    station.budget.charge_look(4.0)
    station.budget.end()
    station.begin(12, 1)
    assert station.budget.training == pytest.approx(96, abs=1)
    assert station.budget.share == pytest.approx(4 / 96, rel=0.02)


def test_validation_examples_are_there_without_a_sanity_check(tmp_path):
    fit(tmp_path, [kernel(probe=ProbeRequest(8, split="val"))], num_sanity_val_steps=0, max_epochs=1)
    assert record(tmp_path)["ntk/trace"].steps.tolist() == STEPS


class Tuned(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.1, 8

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(examples(), self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(examples(24), self.batch_size)


OTHERS: dict[str, Callable[[], pl.Callback]] = {  # that take hold of the loop themselves
    "learning rate": lambda: LearningRateFinder(num_training_steps=20, attr_name="lr"),
    "batch size": lambda: BatchSizeFinder(max_trials=2, steps_per_trial=2, init_val=4),
    "accumulation": lambda: GradientAccumulationScheduler({0: 2, 1: 1}),
    "averaging": lambda: StochasticWeightAveraging(swa_lrs=1e-2),
}


@pytest.mark.filterwarnings("ignore:The `LightningModule` .*batch size:UserWarning")
@pytest.mark.filterwarnings("ignore:Swapping scheduler:UserWarning")
@pytest.mark.parametrize("other", OTHERS)
def test_callbacks_that_take_hold_of_the_loop_are_not_in_the_way(tmp_path, other):
    def run(root: Path, *callbacks: pl.Callback) -> list:
        pl.seed_everything(5, verbose=False)
        module = Tuned()
        saving = {
            "enable_checkpointing": True,
            "logger": CSVLogger(root, "csv"),
            "enable_progress_bar": False,
        }
        trainer(root, [*callbacks, OTHERS[other]()], max_epochs=2, **saving).fit(module)
        return bits([module.state_dict(), streams()])

    assert run(tmp_path / "a", kernel()) == run(tmp_path / "b")
    steps = open_run(tmp_path / "a/csv/version_0")["ntk/trace"].steps.tolist()
    assert steps[0] == 0 and steps == list(range(len(steps))) and len(steps) > 2


def test_module_that_is_compiled_as_a_whole(tmp_path):
    """`trainer.fit(torch.compile(module))`: Lightning keeps compiled methods in the module's attributes."""

    def run(root: Path, *callbacks: pl.Callback) -> list:
        torch._dynamo.reset()
        pl.seed_everything(5, verbose=False)
        module = Quiet()
        compiled = torch.compile(module, backend="eager")
        trainer(root, callbacks, max_epochs=1).fit(compiled, loaders()[0])
        return bits([module.state_dict(), streams()])

    assert run(tmp_path / "a", kernel()) == run(tmp_path / "b")
    fit(tmp_path / "c", [kernel()], module=Quiet, max_epochs=1)
    one, other = record(tmp_path / "a")["ntk/trace"], record(tmp_path / "c")["ntk/trace"]
    assert one.steps.tolist() == STEPS and one.values[0] == other.values[0]

"""The callback of last-layer uncertainty keeps to the contract, and says what an offline fit says."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from contract import EVERY_STEP, CallbackContract
from runs import Classifier, examples, fit, loaders
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from observatory.callbacks import LastLayerUncertainty
from observatory.looking import ProbeRequest
from observatory.records import open_run
from observatory.report import write_report
from observatory.uncertainty import LastLayerClassifier
from observatory.uncertainty.instrument import LastLayerUncertainty as Looking

pytestmark = pytest.mark.filterwarnings("ignore:.* rows for .* features")


class TestLastLayerUncertainty(CallbackContract):
    make = LastLayerUncertainty


def test_last_look_is_the_offline_fit(tmp_path):
    modules = []

    def make() -> Classifier:
        modules.append(Classifier())
        return modules[-1]

    foreign = DataLoader(TensorDataset(torch.randn(40, 6) + 20), 8)
    fit(tmp_path, [LastLayerUncertainty(elsewhere=foreign, **EVERY_STEP)], module=make)
    record = open_run(tmp_path / "observatory/run_0").instrument("uncertainty")
    train, val = loaders()
    model = modules[0].eval()
    x, y = next(iter(DataLoader(val.dataset, 24)))
    offline = LastLayerClassifier(model).fit(DataLoader(train.dataset, 8))
    assert record["effective_dimension"].values[-1] == pytest.approx(
        offline.fitted.spectrum.effective_dimension.item(), rel=1e-5
    )
    np.testing.assert_allclose(record["spectrum"].values[-1], offline.fitted.eigenvalues, rtol=1e-4)
    assert record["rank"].values[-1] <= 17
    with np.load(tmp_path / "observatory/run_0/uncertainty/probe.npz") as probe:
        x, y = (torch.from_numpy(probe[k]) for k in ("inputs_0", "targets_0"))
    offline.calibrate([(x[::2], y[::2])])
    found = offline.score([(x[1::2], y[1::2])])
    for name in ("nll", "ece", "accuracy"):
        assert record[name].values[-1] == pytest.approx(found[name], rel=1e-3)
    assert record["ood_raw"].values[-1] > 0.9  # ReLU features grow far away


def test_part_of_the_rows_is_scaled_to_all(tmp_path):
    fit(tmp_path / "all", [LastLayerUncertainty(**EVERY_STEP)], max_steps=3)
    fit(tmp_path / "half", [LastLayerUncertainty(rows=48, **EVERY_STEP)], max_steps=3)
    whole, half = (
        open_run(tmp_path / name / "observatory/run_0").instrument("uncertainty") for name in ("all", "half")
    )
    ratio = half["spectrum"].values.sum(1) / whole["spectrum"].values.sum(1)
    # a trace over 48 instead of 96 rows of unequal length
    assert ratio == pytest.approx(1.0, abs=0.25)


def test_regression_has_a_baseline_and_sentences(tmp_path):
    x, _ = examples().tensors
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(96, 1)

    class Numbers(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.mse_loss(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.01)

    data = DataLoader(TensorDataset(x, y), 16, shuffle=True)
    run = pl.Trainer(
        accelerator="cpu", logger=False, max_epochs=20, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
        callbacks=[LastLayerUncertainty(probe=ProbeRequest(96), noise="additive", **EVERY_STEP)],
    )  # fmt: skip
    run.fit(Numbers(), data)
    record = open_run(tmp_path / "observatory/run_0")
    part = record.instrument("uncertainty")
    assert part["nll"].values[-1] < part["nll"].values[0]
    assert part["rmse"].values[-1] < part["rmse"].values[0]
    assert {"alpha_nll", "alpha_crps", "alpha_median", "alpha_absolute", "constant_nll"} <= set(part)
    assert "negative log-likelihood" in Looking.findings(part)[0].text
    page = write_report(tmp_path / "observatory/run_0").read_text()
    assert "Dimension of the features" in page and "figures failed" not in page


def test_stream_of_training_data_switches_the_instrument_off_and_nothing_else(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(examples())

    callback = LastLayerUncertainty(every_n_steps=1)
    module, (_, val) = Classifier(), loaders()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, max_steps=3, default_root_dir=tmp_path, callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="a stream of training data cannot be passed over again"):
        trainer.fit(module, DataLoader(Stream(), 8), val)
    assert trainer.global_step == 3 and callback.observer.stations[0].off

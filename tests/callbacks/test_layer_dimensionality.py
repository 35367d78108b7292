"""The callback of layer dimensionality keeps to the contract and records what the function gives."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from contract import EVERY_STEP, CallbackContract
from runs import Classifier, fit
from torch import nn

from observatory.callbacks import LayerDimensionality
from observatory.dimension import profile
from observatory.records import open_run


class TestLayerDimensionality(CallbackContract):
    make = LayerDimensionality


class Deep(Classifier):
    """Six hidden layers of 16."""

    def __init__(self) -> None:
        super().__init__(optimizer="sgd")
        hidden = [part for _ in range(6) for part in (nn.Linear(16, 16), nn.ReLU())]
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *hidden[:-2], nn.Linear(16, 3))


def test_recorded_profile_is_that_of_the_final_weights_on_the_stored_probe(tmp_path):
    modules: list[pl.LightningModule] = []

    def make() -> pl.LightningModule:
        modules.append(Deep())
        return modules[-1]

    fit(tmp_path, [LayerDimensionality(probe=60, **EVERY_STEP)], module=make)
    run = open_run(tmp_path / "observatory/run_0")
    with np.load(run.directory / "dimension/probe.npz") as probe:
        x = torch.from_numpy(probe["inputs_0"])
    expected = profile(modules[0], x)
    record = run.instrument("dimension")
    assert record["two_nn"].coordinates["layer"] == expected.layers == [f"net.{k}" for k in range(0, 12, 2)]
    assert record["alpha"].coordinates["weight"] == [f"net.{k}" for k in range(0, 13, 2)]
    for name, values in expected.values.items():
        np.testing.assert_allclose(record[name].values[-1], values, rtol=1e-9, err_msg=name)
    assert record["log_path_total"].values[-1] == pytest.approx(expected.log_total.item())
    assert (record["imbalance_drift"].values[0] == 0).all()
    assert 0 < record["imbalance_drift"].values[-1].max() < 0.5
    assert np.isfinite(record["staggered"].values).all()


def test_report_shows_the_profiles_and_says_what_noise_gives(tmp_path):
    from observatory.report import write_report

    looks = LayerDimensionality(probe=60, at=[5], max_overhead=None, strict=True)
    fit(tmp_path, [looks], module=Deep)
    page = write_report(tmp_path / "observatory/run_0").read_text()
    for text in ("along the depth", "Dimension against scale", "beyond noise", "focusing of the paths"):
        assert text in page
    assert "figures failed" not in page

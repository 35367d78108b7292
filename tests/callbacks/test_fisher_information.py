"""The callback of the Fisher information keeps to the contract and records what the function gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract import EVERY_STEP, CallbackContract
from runs import Classifier, fit

from observatory.callbacks import FisherInformation
from observatory.ntk.fisher import fisher_trace
from observatory.records import open_run


class TestFisherInformation(CallbackContract):
    make = FisherInformation


def test_recorded_trace_is_that_of_the_final_weights_on_the_stored_probe(tmp_path):
    modules = []

    def make() -> Classifier:
        modules.append(Classifier())
        return modules[-1]

    fit(tmp_path, [FisherInformation(probe=20, **EVERY_STEP)], module=make)
    run = open_run(tmp_path / "observatory/run_0")
    with np.load(run.directory / "fisher/probe.npz") as probe:
        x, y = torch.from_numpy(probe["inputs_0"]), torch.from_numpy(probe["targets_0"])
    network = modules[0].double()
    for name, kind in (("trace", "true"), ("empirical_trace", "empirical")):
        expected = fisher_trace(network, x.double(), y, likelihood="categorical", kind=kind).value
        assert run[f"fisher/{name}"].values[-1] == pytest.approx(expected.item(), rel=1e-4)


def test_parts_of_the_layers_add_up_to_the_trace(tmp_path):
    fit(tmp_path, [FisherInformation(**EVERY_STEP)])
    record = open_run(tmp_path / "observatory/run_0").instrument("fisher")
    assert sorted(record["layers"].coordinates["layer"]) == ["frozen", "net.0", "net.1", "net.4"]
    np.testing.assert_allclose(record["layers"].values.sum(1), record["trace"].values, rtol=1e-6)

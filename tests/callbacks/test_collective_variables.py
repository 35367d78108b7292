"""Collective variables and the one-liner keep to the contract of callbacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract import EVERY_STEP, CallbackContract
from runs import Classifier, fit

from observatory.callbacks import CollectiveVariables, Observatory
from observatory.ntk import collective_variables, empirical_ntk
from observatory.records import open_run


class TestCollectiveVariables(CallbackContract):
    make = CollectiveVariables


class TestObservatory(CallbackContract):
    make = Observatory

    test_yaml_round_trip = None  # the one-liner has no name to give


def test_recorded_kernel_is_that_of_the_final_weights_on_the_stored_probe(tmp_path):
    modules = []

    def make() -> Classifier:
        modules.append(Classifier())
        return modules[-1]

    fit(tmp_path, [CollectiveVariables(probe=20, **EVERY_STEP)], module=make)
    run = open_run(tmp_path / "observatory/run_0")
    with np.load(run.directory / "ntk/probe.npz") as probe:
        x, y = torch.from_numpy(probe["inputs_0"]), torch.from_numpy(probe["targets_0"])
    order = y.argsort(stable=True)
    kernel = empirical_ntk(modules[0].double(), x[order].double(), kind="trace")
    np.testing.assert_allclose(run["ntk/kernel"].values[-1], kernel, rtol=1e-4, atol=1e-4)
    expected = collective_variables(kernel, targets=y[order])
    for name in ("trace", "entropy", "participation_ratio", "centred_alignment", "self_entropy"):
        assert run[f"ntk/{name}"].values[-1] == pytest.approx(getattr(expected, name).item(), rel=1e-4)
    np.testing.assert_allclose(run["ntk/spectrum"].values[-1], expected.eigenvalues, rtol=1e-3, atol=1e-3)


def test_first_kernel_is_the_reference_and_velocity_is_per_step(tmp_path):
    fit(tmp_path, [CollectiveVariables(at=[4, 10], max_overhead=None, strict=True)])
    run = open_run(tmp_path / "observatory/run_0")
    kernels = run["ntk/kernel"]
    assert kernels.steps.tolist() == [0, 4, 10, 24]

    def distance(a: int, b: int) -> float:
        one, other = kernels.values[a].astype(float), kernels.values[b].astype(float)
        return 1 - (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)

    assert run["ntk/distance"].values.tolist() == [pytest.approx(distance(k, 0), abs=1e-9) for k in range(4)]
    expected = [distance(1, 0) / 4, distance(2, 1) / 6, distance(3, 2) / 14]
    assert run["ntk/velocity"].values[1:].tolist() == pytest.approx(expected, abs=1e-9)
    assert np.isnan(run["ntk/velocity"].values[0])

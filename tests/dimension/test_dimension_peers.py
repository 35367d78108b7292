"""The same numbers as scikit-dimension, DADApy and WeightWatcher; `peers.json` says how theirs were made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from observatory.dimension import (
    correlation_dimension,
    fit_tail,
    gride,
    levina_bickel,
    nearest_neighbours,
    two_nn,
)

PEERS = json.loads(Path(__file__).with_name("peers.json").read_text())
SCALES = (1, 2, 4, 8, 16, 32)


def cloud(name: str) -> Tensor:
    """2000 points in 784 dimensions: a Gaussian, or six curved dimensions with noise."""
    if name == "gaussian":
        return torch.from_numpy(np.random.default_rng(10).standard_normal((2000, 784)))
    draw = np.random.default_rng(11)
    z, a, b = draw.standard_normal((2000, 6)), draw.standard_normal((6, 64)), draw.standard_normal((64, 784))
    return torch.from_numpy(np.tanh(z @ a / 2) @ b / 8 + 0.01 * draw.standard_normal((2000, 784)))


@pytest.mark.parametrize("name", ["gaussian", "curved"])
def test_dimensions_are_those_of_scikit_dimension_and_dadapy(name):
    near, theirs = nearest_neighbours(cloud(name)), PEERS[name]
    ours = {
        "two_nn_ols": two_nn(near),
        "dadapy_two_nn_base": two_nn(near),
        "dadapy_two_nn_ml": two_nn(near, method="ml"),
        "two_nn_censored": two_nn(near, method="censored"),
        "levina_bickel": levina_bickel(near),
        "levina_bickel_mean": levina_bickel(near, combine="mean"),
        "correlation": correlation_dimension(near),
    }
    for key, found in ours.items():
        assert found.value.item() == pytest.approx(theirs[key], rel=1e-6), key
    curve = gride(near, n1=SCALES)
    for key in ("gride", "dadapy_gride"):
        np.testing.assert_allclose(curve.value, theirs[key], rtol=1e-6)
        np.testing.assert_allclose(curve.standard_error, theirs[f"{key}_error"], rtol=1e-6)
    np.testing.assert_allclose((curve.near + curve.far) / 2, theirs["dadapy_gride_scale"], rtol=1e-6)


def test_dimensions_are_those_of_an_installed_scikit_dimension(generator):
    skdim = pytest.importorskip("skdim.id", reason="scikit-dimension is not installed (extra: peers)")
    x = torch.randn(400, 12, generator=generator, dtype=torch.float64).cumsum(1)
    near, data = nearest_neighbours(x), x.numpy()
    assert two_nn(near).value.item() == pytest.approx(skdim.TwoNN().fit(data).dimension_, rel=1e-6)
    mle = skdim.MLE().fit(data, n_neighbors=20, comb="mle").dimension_
    assert levina_bickel(near).value.item() == pytest.approx(mle, rel=1e-6)
    scale = skdim.GRIDE().fit(data).dimension_
    assert gride(near).value.item() == pytest.approx(scale, rel=1e-6)
    pairs = skdim.CorrInt().fit(data).dimension_
    assert correlation_dimension(near).value.item() == pytest.approx(pairs, rel=1e-6)


def test_duplicates_do_not_disturb_as_they_disturb_the_peers(generator):
    x = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    for found in (two_nn(torch.cat([x, x])), levina_bickel(torch.cat([x, x]))):
        assert found.dropped == 400 and 4 < found.value < 6


@pytest.mark.parametrize(
    ("name", "shape", "tail"), [("pareto_1.5", (300, 200), 1.5), ("pareto_2.5", (200, 400), 2.5)]
)
def test_spectral_exponents_are_those_of_weightwatcher(name, shape, tail):
    draw = np.random.default_rng(20)
    normal = draw.standard_normal(shape)
    weight = normal * 0 + draw.pareto(tail, shape) * np.sign(draw.standard_normal(shape))
    fit = fit_tail(torch.linalg.svdvals(torch.from_numpy(weight)).square())
    theirs = PEERS["spectral_exponents"][name]
    assert fit.alpha == pytest.approx(theirs["alpha"], rel=1e-6)
    assert fit.distance == pytest.approx(theirs["D"], rel=1e-6)
    assert fit.xmin == pytest.approx(theirs["xmin"], rel=1e-6)
    assert fit.tail == theirs["tail"]

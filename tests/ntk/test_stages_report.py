"""Stages of learning on the page of a run, and in the sentences below it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from observatory.looking import Look, ModelFunction, Probe
from observatory.ntk import CollectiveVariables, StageDetector
from observatory.ntk.stages_figures import COLOURS
from observatory.records import Quantity, Run, RunRecord

STEPS = np.array([0, *np.unique(np.round(np.logspace(0, 3, 25))).astype(int)])
KNOTS = [0, 10, 100, 1000]


def recorded(root: Path) -> Run:
    """Entropy rests, falls, rises; the trace rises throughout; the velocity falls."""
    tau = np.log1p(STEPS)
    entropy = np.interp(tau, np.log1p(KNOTS), [2.0, 2.0, 1.0, 1.6])
    columns = {"entropy": entropy, "mean_trace": np.exp(0.3 * tau), "velocity": np.exp(-tau)}
    record = RunRecord(root / "observatory", "x")
    named = {name: Quantity((), "1", "given") for name in columns}
    part = record.instrument("ntk", named | {"spectrum": Quantity(("rank",), "1", "given")})
    for k, step in enumerate(STEPS):
        part.append(int(step), {name: v[k] for name, v in columns.items()} | {"spectrum": np.ones(8)})
    record.close()
    return Run(root / "observatory", "ntk")


def test_page_shades_and_names_the_stages(tmp_path):
    run = recorded(tmp_path)
    text = " ".join(finding.text for finding in CollectiveVariables.findings(run))
    assert (
        "stages of the entropy by steps: plateau (0-10), compression (10-100), structure formation (100-"
        in text
    )
    assert "the logarithm of the trace by steps: rises (0-1000)" in text
    assert "the logarithm of the kernel's velocity by steps: falls (0-1000)" in text
    figure = CollectiveVariables.figures(run)[0].figure
    shades = [[patch.get_facecolor()[:3] for patch in axis.patches] for axis in figure.axes]
    from matplotlib.colors import to_rgb

    kinds = [["plateau", "compression", "structure formation"], ["structure formation"]]
    assert shades == [[to_rgb(COLOURS[kind]) for kind in row] for row in kinds]


def test_interrupted_instrument_recognises_the_same_stage():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    probe = Probe(torch.randn(12, 6), torch.arange(12) % 3)
    one = CollectiveVariables(keep_kernel=False)
    two, detector = CollectiveVariables(keep_kernel=False), StageDetector()
    codes = []
    for step in range(1, 40):
        with torch.no_grad():  # the entropy falls as the weights of the first layer grow
            net[0].weight.mul_(1.05 if step > 15 else 1.0).add_(1e-3 * torch.randn(8, 6))
        look = Look(ModelFunction.of(net), probe, step=step, epoch=0)
        if step == 20:
            two.load_state_dict(one.state_dict())
        values = (two if step >= 20 else one).observe(look)
        detector.update(step, float(values["entropy"]))
        codes.append(float(values["stage"]))
    expected = {"compression": -1.0, "plateau": 0.0, "structure formation": 1.0}
    assert codes[-1] == expected[detector.kind] and np.isnan(codes[0])
    assert two.state_dict()["stages"] == detector.state_dict()

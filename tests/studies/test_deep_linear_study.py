"""The deep linear network as a study: from spectra that are given, and as a run of the loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from finished import drawn, finished_run, text_of

from observatory.data import StackedData
from observatory.ntk import empirical_ntk
from observatory.running import run_experiment
from observatory.solvable.deep_linear import half_times, mode_strengths
from observatory.studies import DeepLinear, FinishedRun
from observatory.studies.deep_linear import RATE
from observatory.studies.linear_map import STRENGTHS, BalancedLinear, LinearMap

TARGETS = torch.tensor(STRENGTHS, dtype=torch.float64)
D = len(STRENGTHS)


def run_of(root: Path, step_time: float, deviation: float) -> FinishedRun:
    """Looks at the closed form with the largest mode too strong by `deviation` times σ₁ everywhere."""
    times = np.concatenate([[0], np.logspace(np.log10(0.05), np.log10(12), 70)])
    steps = np.unique(np.round(times / step_time)).astype(int)
    strengths = mode_strengths(TARGETS, torch.from_numpy(steps * step_time), start=1e-3)
    strengths[:, 0] += deviation * TARGETS[0]
    spectrum = D * strengths + strengths.sum(
        1, keepdim=True
    )  # of the trace-contracted kernel on unit vectors
    return finished_run(
        root / str(step_time),
        {RATE: step_time * D**2 / 2},
        steps=steps.tolist(),
        quantities={"spectrum": spectrum.numpy()},
    )


def test_deviation_order_and_half_times_are_read_off_the_spectra(tmp_path):
    finished = [run_of(tmp_path, dt, 0.1 * dt) for dt in (4e-3, 1e-3, 2e-3)]
    conclusion = DeepLinear().conclude(finished)
    text = text_of(conclusion)
    assert "The run follows the gradient flow: at a step of t = 0.001 every mode stays within 1.0e-04" in text
    assert "the deviation grows as its power 1.00 over 3 learning rates" in text
    assert "Compression turns into structure formation at t = " in text
    assert "plateau (0-" in text and text.index("compression (") < text.index("structure formation (")
    rows = conclusion.sections[1].rows
    exact = half_times(TARGETS, start=1e-3)
    assert [row[1] for row in rows] == [f"{t:.4f}" for t in exact]
    # ln s/(σ - s) is linear in time: what is left is the round-off of steps and the deviation put in
    assert [float(row[2]) for row in rows[1:]] == pytest.approx(exact[1:].tolist(), abs=2e-3)
    assert drawn(conclusion) == ["Modes", "Entropy and trace", "Step size"]


def test_run_that_does_not_follow_is_a_warning(tmp_path):
    conclusion = DeepLinear().conclude([run_of(tmp_path, 1e-3, 0.05), run_of(tmp_path, 2e-3, 0.05)])
    assert conclusion.findings[0].level == "warning" and "only roughly" in conclusion.findings[0].text


def test_modes_that_the_run_ends_before_are_not_reached(tmp_path):
    run = run_of(tmp_path, 1e-3, 0.0)
    short = DeepLinear()._course(run)
    early = type(short)(*(v[:40] if isinstance(v, torch.Tensor) else v for v in vars(short).values()))
    reached = ~early.half_times(TARGETS).isnan()
    assert torch.equal(reached, half_times(TARGETS, start=1e-3) < float(early.times[-1]))


def test_network_and_data_are_the_closed_forms():
    net, data = BalancedLinear().double(), LinearMap(steps_per_epoch=3)
    x, y = (t.double() for t in data.dataset("train").tensors)
    kernel = empirical_ntk(net, x, kind="trace")
    start = torch.full((D,), 1e-3 * 2 * D, dtype=torch.float64)  # d s₀ + Σ s₀
    torch.testing.assert_close(torch.linalg.eigvalsh(kernel), start, rtol=1e-6, atol=0)  # float32 weights
    torch.testing.assert_close(torch.linalg.svdvals(y), TARGETS, rtol=1e-6, atol=0)
    batches = list(data.train_dataloader())
    assert len(batches) == 3 and all(torch.equal(batch[0], torch.eye(D)) for batch in batches)


def test_runs_of_different_length_are_not_stacked():
    """The loader of the map repeats its batch, which a stack of data sets would not."""
    assert "batches of its own making" in StackedData.why_not([LinearMap(), LinearMap(steps_per_epoch=3)])


def test_one_step_size_is_refused():
    with pytest.raises(ValueError, match=f"sweep {RATE} with at least two values"):
        DeepLinear().check([{RATE: 0.1}])


@pytest.mark.slow
def test_lightning_loop_follows_the_closed_form(tmp_path):
    """Two step sizes of the shipped experiment: the deviation is that of Euler's method."""
    assert run_experiment("deep_linear", quick=True, output=tmp_path) == 0
    folder = tmp_path / "deep_linear-quick"
    texts = [f["text"] for f in json.loads((folder / "conclusion.json").read_text())["findings"]]
    power = float(texts[1].split("power ")[1].split(" ")[0])
    assert power == pytest.approx(1, abs=0.1)
    assert "turns into structure formation" in texts[2]

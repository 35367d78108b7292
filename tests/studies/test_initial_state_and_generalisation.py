"""Correlations of what runs began with and where they came to, from runs whose numbers are given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from finished import drawn, finished_run, text_of
from scipy.stats import pearsonr, spearmanr

from observatory.data import Digits
from observatory.running import run_experiment
from observatory.studies import FinishedRun, InitialStateAndGeneralisation
from observatory.studies.initial_state_and_generalisation import DRAW, SEED, SELECTION, VARIED
from observatory.studies.selected_digits import SelectedDigits

M = 40


def points(m: int = M) -> list[dict]:
    """Each kind m times; the first run is an initial state and a random selection."""
    rows = [(seed, "random", 0) for seed in range(m)]
    rows += [(0, "random", draw) for draw in range(1, m)] + [(0, "novelty", draw) for draw in range(m)]
    return [dict(zip((SEED, SELECTION, DRAW), row, strict=True)) for row in rows]


def runs(
    root: Path, entropy: Sequence[float], trace: Sequence[float], loss: Sequence[float]
) -> list[FinishedRun]:
    """The lowest loss stands in the middle of the curve."""
    return [
        finished_run(
            root / str(k),
            point,
            steps=[0, 9],
            quantities={"entropy": [entropy[k], 0.1], "mean_trace": [trace[k], 1e3]},
            curves={"val/loss": [loss[k] + 1, loss[k], loss[k] + 0.5]},
        )
        for k, point in enumerate(points())
    ]


def test_what_is_there_is_found_and_what_is_not_is_a_null(tmp_path):
    rng = np.random.default_rng(0)
    n = 3 * M - 1
    entropy, trace = 2 + 0.1 * rng.standard_normal(n), rng.lognormal(4, 0.1, n)
    loss = 1.5 + 0.2 * rng.standard_normal(n)  # by chance, but for the random selections:
    chosen = [0, *range(M, 2 * M - 1)]
    loss[chosen] = 1.5 - (entropy[chosen] - 2) + 0.02 * rng.standard_normal(M)
    conclusion = InitialStateAndGeneralisation().conclude(runs(tmp_path, entropy, trace, loss))
    text = text_of(conclusion)
    assert "Among random selections a larger entropy S₀ goes with a lower lowest loss" in text
    assert text.count("does not tell which run will generalise better") == 5
    assert "6 correlations were looked for; 1 have p < 0.05" in text
    rows = {(row[0], row[2]): row for row in conclusion.sections[0].rows}
    row = rows["random selections", "entropy S₀"]
    r = pearsonr(entropy[chosen], loss[chosen]).statistic
    rho = spearmanr(entropy[chosen], loss[chosen])
    assert row[1] == str(M) and r < -0.95
    assert row[3].startswith(f"{r:.2f} (95 % ") and row[4].startswith(f"{rho.statistic:.2f} (95 % ")
    assert row[5] == f"{rho.pvalue:.2g}"
    assert drawn(conclusion) == ["Before the first step, and after", "Correlations"]


def test_interval_of_a_correlation_is_as_wide_as_fishers(tmp_path):
    rng = np.random.default_rng(1)
    n, rho = 3 * M - 1, 0.6
    entropy = rng.standard_normal(n)
    loss = 5 + rho * entropy + (1 - rho**2) ** 0.5 * rng.standard_normal(n)
    study = InitialStateAndGeneralisation()
    finished = runs(tmp_path, entropy, np.ones(n) + rng.random(n), loss)
    kind = study._kind("initial states", finished[:M])
    found = kind.pearson("entropy", 4000)
    z = np.arctanh(pearsonr(entropy[:M], loss[:M])[0])
    low, high = np.tanh(z - 1.96 / (M - 3) ** 0.5), np.tanh(z + 1.96 / (M - 3) ** 0.5)
    assert (float(found.low), float(found.high)) == pytest.approx((low, high), abs=0.1)  # (1 - ρ²)/√M = 0.10


def test_choice_by_novelty_is_compared_with_chance(tmp_path):
    rng = np.random.default_rng(2)
    n = 3 * M - 1
    entropy = 2 + 0.1 * rng.standard_normal(n)
    entropy[-M:] += 0.5
    loss = 1 + 0.1 * rng.random(n)
    loss[-M:] *= 0.8
    conclusion = InitialStateAndGeneralisation().conclude(runs(tmp_path, entropy, 1 + rng.random(n), loss))
    text = text_of(conclusion)
    random = [0, *range(M, 2 * M - 1)]
    ratios = [v[-M:].mean() / v[random].mean() for v in (entropy, loss)]
    assert f"by novelty raises the entropy S₀: {ratios[0]:.2f} " in text
    assert f"by novelty lowers the lowest loss: {ratios[1]:.2f} " in text
    assert "does not change the mean trace" in text


def test_sweeps_that_say_nothing_are_refused(tmp_path):
    study = InitialStateAndGeneralisation()
    study.check(points(5))
    with pytest.raises(ValueError, match=f"sweep {SEED}"):
        study.check([{SEED: k} for k in range(5)])
    with pytest.raises(ValueError, match="got 4 initial states, 4 random selections, 4 selections by nov"):
        study.check(points(4))
    with pytest.raises(ValueError, match=r"run 1 differs .* vary one of them"):
        study.check([points()[0], {SEED: 1, SELECTION: "random", DRAW: 1}])
    bare = finished_run(tmp_path / "bare", {}, quantities={"entropy": [1.0], "mean_trace": [1.0]})
    with pytest.raises(ValueError, match="let the Trainer validate"):
        study._lowest(bare)


@pytest.mark.parametrize("selection", ["random", "novelty"])
def test_selected_digits_are_some_of_the_training_examples(selection):
    pool = {tuple(x.tolist()) for x in Digits(flat=True).splits().train[0]}
    before = torch.get_rng_state()
    one, again, other = (
        SelectedDigits(8, selection, draw=draw, width=8).dataset("train").tensors[0] for draw in (3, 3, 4)
    )
    assert torch.equal(before, torch.get_rng_state())  # the initial weights do not depend on the selection
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert len(one.unique(dim=0)) == 8 and {tuple(x.tolist()) for x in one} <= pool
    held_out = SelectedDigits(8, selection).dataset("val").tensors[0]
    assert len(held_out) == 1797 - len(pool) and not {tuple(x.tolist()) for x in held_out} & pool


def test_selected_digits_know_two_selections():
    with pytest.raises(ValueError, match="'random' or 'novelty'"):
        SelectedDigits(selection="best")


@pytest.mark.slow
def test_shipped_experiment_compares_all_kinds(tmp_path):
    """The smoke setting from the file to the page; runs on other data are trained in one stack."""
    assert run_experiment("initial_state_and_generalisation", quick=True, output=tmp_path) == 0
    content = json.loads((tmp_path / "initial_state_and_generalisation-quick/conclusion.json").read_text())
    table = content["tables"]["The runs"]
    assert [row[:2] for row in table[1:]] == [[varied, "5"] for varied in VARIED]
    random, novel = (float(table[k][2].split(" ")[0]) for k in (2, 3))
    assert novel > random  # novel examples are more different from each other: the kernel has more directions
    losses = [float(row[4].split(" ")[0]) for row in table[1:]]
    assert all(0 < loss < np.log(10) for loss in losses)  # better than guessing

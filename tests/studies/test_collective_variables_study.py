"""Compression and structure formation by depth and width, from runs whose entropies are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from finished import drawn, finished_run, text_of

from observatory.studies import CollectiveVariables, FinishedRun
from observatory.studies.collective_variables import WIDTHS

STEPS = [0, *np.unique(np.round(np.logspace(0, 3, 25))).astype(int).tolist()]


def entropies(change: float) -> np.ndarray:
    """At rest for ten steps, then on a straight line in ln(1 + step)."""
    tau = np.log1p(STEPS)
    knots = np.log1p([0, STEPS[np.searchsorted(STEPS, 10)], STEPS[-1]])
    return np.interp(tau, knots, [2.0, 2.0, 2.0 + change])


def runs(root: Path, changes: dict[tuple[int, ...], float], *, seeds: int = 4, scatter: float = 0.02) -> list:
    rng = np.random.default_rng(0)
    shifts = scatter * np.array([-1.0, 1.0, -1.0, 1.0][:seeds])  # mean zero: the mean change is exact
    found: list[FinishedRun] = []
    for widths, change in changes.items():
        for seed, shift in enumerate(shifts):
            noise = 1e-3 * rng.standard_normal(len(STEPS))
            noise[[0, -1]] = 0
            found.append(
                finished_run(
                    root / f"{widths}-{seed}",
                    {WIDTHS: list(widths), "seed_everything": seed},
                    steps=STEPS,
                    quantities={"entropy": entropies(change + shift) + noise},
                    metrics={"test/loss": 0.1},
                )
            )
    return found


SHALLOW, WIDE = (64, 16, 10), (64, 256, 10)
DEEP, DEEP_WIDE = (64, 16, 16, 16, 10), (64, 256, 256, 256, 10)


def test_depth_decides(tmp_path):
    given = {SHALLOW: -0.4, WIDE: -0.4, DEEP: 1.0, DEEP_WIDE: 1.0}
    conclusion = CollectiveVariables().conclude(runs(tmp_path, given))
    text = text_of(conclusion)
    error = 0.02 * (4 / 3) ** 0.5 / 2  # standard deviation of ±0.02 over four seeds, of their mean
    assert f"One hidden layer: information compression; the entropy changes by -0.40 ± {error:.2f}" in text
    assert f"3 hidden layers: structure formation; the entropy changes by +1.00 ± {error:.2f}" in text
    assert "What decides is depth: depth accounts for 100% of the variance" in text
    assert "width for 0%" in text
    knot = STEPS[np.searchsorted(STEPS, 10)]
    assert f"1 x 16: plateau (0-{knot}), compression ({knot}-1000)" in text
    assert f"3 x 256: plateau (0-{knot}), structure formation ({knot}-1000)" in text
    assert drawn(conclusion) == ["Compression or structure", "Entropy during training"]


def test_width_decides_and_small_changes_are_none(tmp_path):
    given = {SHALLOW: 0.0, WIDE: 0.6, DEEP: 0.0, DEEP_WIDE: 0.6}
    conclusion = CollectiveVariables().conclude(runs(tmp_path, given))
    text = text_of(conclusion)
    assert text.count("the outcome depends on the width") == 2
    assert "What decides is width" in text and "width for 100%" in text
    outcomes = [row[6] for row in conclusion.sections[0].rows]
    assert outcomes == ["no change beyond the scatter", "structure formation"] * 2


def test_two_seeds_need_a_change_of_thirteen_standard_errors(tmp_path):
    """Student's t of one degree of freedom at 97.5 % is 12.7."""
    error = 0.1  # ±0.1 over two seeds: their mean has the standard error 0.1
    for change, outcome in (
        (12.5 * error, "no change beyond the scatter"),
        (12.9 * error, "structure formation"),
    ):
        given = {SHALLOW: change, DEEP: 0.0}
        conclusion = CollectiveVariables().conclude(runs(tmp_path / str(change), given, seeds=2, scatter=0.1))
        assert conclusion.sections[0].rows[0][6] == outcome


def test_more_widths_than_colours_are_all_drawn(tmp_path):
    given = {(64, *[width] * depth, 10): 0.1 for depth in (1, 2) for width in (4, 8, 16, 32, 64, 128, 256)}
    conclusion = CollectiveVariables().conclude(runs(tmp_path, given, seeds=2))
    evolution = conclusion.sections[0].panels[1].figure
    assert [len(axis.lines) for axis in evolution.axes] == [7, 7]


def test_sweeps_without_depths_or_seeds_are_refused():
    study = CollectiveVariables()
    with pytest.raises(ValueError, match=f"sweep {WIDTHS}"):
        study.check([{"seed_everything": 0}])
    with pytest.raises(ValueError, match="two depths and two seeds"):
        study.check([{WIDTHS: list(SHALLOW)}, {WIDTHS: list(WIDE)}] * 2)
    with pytest.raises(ValueError, match="two depths and two seeds"):
        study.check([{WIDTHS: list(SHALLOW)}, {WIDTHS: list(DEEP)}])
    study.check([{WIDTHS: list(SHALLOW)}, {WIDTHS: list(DEEP)}] * 2)

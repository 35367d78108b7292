"""Where the trace of the Fisher information is largest, from runs whose traces are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from finished import drawn, finished_run, text_of

from observatory.studies import FinishedRun, FisherInformation
from observatory.studies.fisher_information import SHARE

STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]
RISING = [1, 2, 4, 3, 2, 1, 0.5, 0.2, 0.1, 0.05]  # largest at step 2
LOSS = [2.3, 2.2, 2.1, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.01]  # half fallen at step 8: 1.0 <= 1.155


def runs(
    root: Path, traces: dict[float, list], loss: list[float] = LOSS, seeds: int = 4
) -> list[FinishedRun]:
    found = []
    for share, trace in traces.items():
        for seed in range(seeds):
            values = np.array(trace) * (1 + 0.1 * seed)
            layers = values[:, None] * np.array([0.75, 0.25])
            found.append(
                finished_run(
                    root / f"{share}-{seed}",
                    {SHARE: share, "seed_everything": seed},
                    instrument="fisher",
                    steps=STEPS,
                    quantities={"trace": values, "loss": np.array(loss), "layers": layers},
                    coordinates={"layer": ["1", "3"]},
                )
            )
    return found


def test_maximum_before_the_fall_of_the_loss(tmp_path):
    conclusion = FisherInformation().conclude(runs(tmp_path, {0.0: RISING}))
    text = text_of(conclusion)
    assert "True labels: the trace rises 4.00 (95 % 4.00 to 4.00) times above its first value" in text
    assert "at step 2 (4 of 4 seeds)" in text
    lead = np.log(9) - np.log(3)
    assert "The maximum comes before the loss on the probe has fallen half of its way" in text
    assert (
        f"ln(step) differs by {lead:.2f} (95 % {lead:.2f} to {lead:.2f}); the half fall is at step 8" in text
    )
    shares = conclusion.sections[1].rows
    assert shares == [
        ["true labels", name, *[f"{share} ± 0%"] * 3] for name, share in (("1", "75%"), ("3", "25%"))
    ]
    assert drawn(conclusion) == ["Trace and loss", "Layers", "Magnet"]


def test_maximum_after_the_fall_and_no_maximum(tmp_path):
    late = [1, 1, 1, 1, 1, 2, 3, 4, 3, 1]
    text = text_of(FisherInformation().conclude(runs(tmp_path / "late", {0.0: late})))
    assert "The maximum comes after the loss" in text and "at step 64" in text
    falling = list(np.linspace(2, 1, len(STEPS)))
    text = text_of(FisherInformation().conclude(runs(tmp_path / "none", {0.0: falling})))
    assert "the trace has no maximum between the first and the last look (0 of 4 seeds)" in text
    assert "comes before the loss" not in text and "comes after the loss" not in text


def test_wrong_labels_are_compared_seed_by_seed(tmp_path):
    wrong = [*RISING[:-1], 0.15]
    text = text_of(FisherInformation().conclude(runs(tmp_path / "more", {0.0: RISING, 0.5: wrong})))
    assert "With 50% of the labels permuted the trace at the end is 3 times larger" in text
    text = text_of(FisherInformation().conclude(runs(tmp_path / "same", {0.0: RISING, 0.5: RISING})))
    assert "does not depend on whether labels were permuted" in text


def test_magnet_of_the_page_has_the_peaks_of_the_closed_form(tmp_path):
    section = FisherInformation().conclude(runs(tmp_path, {0.0: RISING})).sections[2]
    (finding,) = section.findings
    for numbers in ("β = 1.181, F/N = 0.861 at N = 100", "β = 1.065, F/N = 1.320 at N = 1000",
                    "β = 1.022, F/N = 1.538 at N = 10000"):  # fmt: skip
        assert numbers in finding.text
    exponent = np.polyfit(np.log([100, 1000, 10000]), np.log([0.181, 0.065, 0.022]), 1)[0]
    assert f"N^({exponent:.2f})" in finding.text  # -1/2 of mean-field theory: ν d = 2


def test_sweeps_without_seeds_are_refused():
    study = FisherInformation()
    study.check([{SHARE: 0.0}, {SHARE: 0.0}])
    with pytest.raises(ValueError, match="equally many seeds, at least two"):
        study.check([{SHARE: 0.0}, {SHARE: 0.5}])
    with pytest.raises(ValueError, match="equally many seeds, at least two"):
        study.check([{SHARE: 0.0}] * 2 + [{SHARE: 0.5}] * 3)

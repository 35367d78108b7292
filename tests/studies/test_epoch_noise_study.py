"""The study of epoch noise reads what two ways of drawing batches did, and compares it with closed forms."""

from __future__ import annotations

import pytest
import torch
from finished import drawn, finished_run, text_of

from observatory.solvable.epoch_noise import epoch_noise_variance, white_noise_variance
from observatory.studies import EpochNoise
from observatory.studies.epoch_noise import KEY

RATE, SIZE, SAMPLES, NOISE = 0.025, 200, 4000, 0.5  # 20 batches an epoch, C = s²H with s² = 1/2
CURVATURE = torch.logspace(-1, 1, 24, dtype=torch.float64)


def run_of(folder, sampling, factor):
    """As a window of 2·10⁵ steps would measure it; the flattest direction has `factor` times its own."""
    white = white_noise_variance(CURVATURE, learning_rate=RATE, noise=NOISE * CURVATURE / SIZE)
    variance = white
    if sampling == "without replacement":
        repeats = (SAMPLES - SIZE) / (SAMPLES - 1)
        still = epoch_noise_variance(
            CURVATURE, learning_rate=RATE, batches=20, noise=NOISE * CURVATURE / SIZE * repeats
        )
        # the part of the gradient that follows the weights adds (κ·σ²/s²) of the white variance to each σ²
        share = (CURVATURE * still).sum() / NOISE / (1 - (CURVATURE * white).sum() / NOISE)
        variance = still + share * white
    variance = variance * torch.where(CURVATURE[0] >= CURVATURE, factor, 1.0)
    values = {
        "curvature": CURVATURE, "variance": variance, "noise": NOISE * CURVATURE,
        "integrated_time": 1 / (RATE * CURVATURE),
    }  # fmt: skip
    scalars = {"learning_rate": RATE, "first_step": 0, "last_step": 199_999, "dissipation_ratio": 1.0}
    values = {name: v[None].numpy() for name, v in values.items()}
    settings = {"batch_size": SIZE, "samples": SAMPLES, "sampling": sampling}
    return finished_run(
        folder / sampling, {KEY: sampling == "with replacement"}, instrument="weights", settings=settings,
        quantities=values | {name: [v] for name, v in scalars.items()},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("factor", "level", "words"),
    [
        (1.0, "result", "the variance is 1.000 of its closed form"),
        # τ = 400 steps: √(2·400/2·10⁵) = 6.3 %, of which 50 % are 7.9
        (1.5, "warning", "by +50%, is 7.9 standard errors off"),
    ],
)
def test_two_ways_of_drawing_are_told_apart_and_held_against_theory(factor, level, words, tmp_path):
    runs = [run_of(tmp_path, sampling, factor) for sampling in ("without replacement", "with replacement")]
    conclusion = EpochNoise().conclude(runs)
    agreement = conclusion.findings[-1]
    assert words in agreement.text and agreement.level == level
    assert "an inverse variance-flatness relation" in text_of(conclusion).splitlines()[0]
    assert drawn(conclusion) == ["Variance against curvature"]
    if factor == 1.0:  # the white variance does not depend on κ up to ηκ/2, and ψ is twice a slope
        assert "Draws with replacement: ψ = 0.0" in text_of(conclusion)


def test_one_way_of_drawing_is_nothing_to_compare():
    with pytest.raises(ValueError, match="both ways of drawing"):
        EpochNoise().check([{KEY: True}])

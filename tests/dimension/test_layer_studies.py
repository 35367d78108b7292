"""What the studies conclude from profiles whose verdict is known."""

from __future__ import annotations

import numpy as np
import pytest

from observatory.studies.layer_dimensionality import LayerDimensionality, _Condition, _dimension, _oscillates
from observatory.studies.representation_geometry import (
    DECIDING,
    RepresentationGeometry,
    _Moment,
    _verdict,
    hunchback,
)
from observatory.studies.study import with_error


def condition(p: list[float], signed: list[float]) -> _Condition:
    values = {
        "oscillation_p": np.array(p)[:, None],
        "signed_staggered": np.array(signed)[:, None],
        "staggered": np.abs(signed)[:, None],
    }
    return _Condition("trained", np.arange(10), values, {"two_nn": 10})


def test_oscillation_needs_seeds_beyond_noise_and_one_phase():
    significant = [0.01] * 6
    assert _oscillates(condition(significant, [0.9, 0.95, 0.85, 0.9, 0.92, 0.9]), 0, 16)
    assert not _oscillates(condition(significant, [0.9, -0.95, 0.85, -0.9, 0.92, -0.9]), 0, 16)
    # one of six passes by chance in a quarter of all cases, and a bend has a phase as well
    assert not _oscillates(condition([0.01] + [0.4] * 5, [0.2, 0.21, 0.19, 0.2, 0.2, 0.2]), 0, 16)


def test_hunchback_is_a_maximum_inside_that_exceeds_both_ends():
    noise = 0.1 * np.array([[1, -1, 0, 1], [-1, 0, 1, 0], [0, 1, -1, -1]])
    top, p = hunchback(np.array([2.0, 5.0, 4.0, 1.0]) + noise)
    assert top == 1 and p < 0.01
    assert hunchback(np.array([5.0, 4.0, 3.0, 1.0]) + noise) == (0, 1.0)
    assert hunchback(np.array([4.95, 5.0, 4.0, 1.0]) + noise)[1] > 0.05


def test_verdict_counts_the_estimates_that_have_a_hunchback():
    noise = 0.1 * np.array([[1, -1, 0, 1], [-1, 0, 1, 0], [0, 1, -1, -1]])
    hump, fall = np.array([2.0, 5.0, 4.0, 1.0]) + noise, np.array([5.0, 4.0, 3.0, 1.0]) + noise
    depth = np.linspace(0.2, 0.8, 4)
    flat = _Moment("before training", depth, dict.fromkeys(DECIDING, fall))
    risen = _Moment("after training", depth, dict.fromkeys(DECIDING, hump))
    mixed = _Moment("after training", depth, dict(zip(DECIDING, (hump, hump, fall), strict=True)))
    assert (
        "after training by all 3 estimates, before training by none of the 3." in _verdict(flat, risen).text
    )
    assert "after training by 2 of 3 estimates" in _verdict(flat, mixed).text


def test_a_dimension_that_rises_before_it_falls_is_not_told_as_falling():
    noise = 0.1 * np.array([[1, -1, 0, 1], [-1, 0, 1, 0], [0, 1, -1, -1]])
    for profile, told in (
        ([4.0, 6.0, 5.0, 3.0], "with a maximum of 6.00 ± 0.06 at relative depth 0.40."),
        ([6.0, 4.0, 4.0, 3.0], "falling on the whole."),
        ([6.0, 5.0, 4.0, 3.0], "falling from every layer to the next in every seed."),
    ):
        one = _Condition("trained", np.array([0.2, 0.4, 0.6, 0.8]), {"levina_bickel": profile + noise}, {})
        assert _dimension(one).text.endswith(told)


@pytest.mark.parametrize(
    ("mean", "error", "told"),
    [
        (39.52, 1.2, "39.5 ± 1.2"),
        (6.712, 0.041, "6.71 ± 0.04"),
        (-0.001, 0.04, "0.00 ± 0.04"),
        (2.0, 0.0, "2.0 ± 0.0"),
    ],
)
def test_small_errors_are_seen(mean, error, told):
    assert with_error(mean, error) == told


def test_studies_ask_for_seeds():
    with pytest.raises(ValueError, match="at least two seeds of each"):
        LayerDimensionality().check(
            [{"data.init_args.shuffle_labels": 0.0}, {"data.init_args.shuffle_labels": 1.0}]
        )
    with pytest.raises(ValueError, match="at least two seeds, got 1"):
        RepresentationGeometry().check([{}])

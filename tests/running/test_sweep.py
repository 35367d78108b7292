"""Sweeps: which points, under which names."""

from __future__ import annotations

from typing import Any

import pytest

from observatory.running.sweep import fingerprint, point_name, short_keys, sweep_points, with_values


def test_a_product_has_all_combinations_and_a_zip_its_rows() -> None:
    sweep = {"product": {"a": [1, 2], "b": ["x", "y", "z"]}, "zip": {"c": [0, 1], "d": [5, 6]}}
    points = sweep_points(sweep)
    assert len(points) == 2 * 3 * 2
    assert points[0] == {"a": 1, "b": "x", "c": 0, "d": 5}
    assert all(point["d"] == point["c"] + 5 for point in points)
    assert sweep_points({"a": [1, 2]}) == [{"a": 1}, {"a": 2}]
    assert sweep_points({"zip": {"a": [1, 2]}}) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"a": 3}, "a must be a list of values that is not empty, got 3"),
        ({"a": []}, "a must be a list of values that is not empty"),
        ({"zip": {"a": [1, 2], "b": [1]}}, "a has 2, b has 1"),
        ({"a": [1, 1]}, "two of its points are the same"),
        ({"product": {"a": [1]}, "b": [2]}, "b stands beside product and zip"),
        ({"product": {"a": [1]}, "zip": {"a": [2]}}, "a is under product and under zip"),
    ],
)
def test_sweeps_that_say_two_things_are_refused(sweep: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep_points(sweep)


def test_dotted_keys_change_a_copy() -> None:
    config = {"model": {"init_args": {"width": 1}}, "x": 2}
    changed = with_values(config, {"model.init_args.width": 7, "trainer.max_epochs": 3})
    assert changed == {"model": {"init_args": {"width": 7}}, "x": 2, "trainer": {"max_epochs": 3}}
    assert config["model"]["init_args"]["width"] == 1
    with pytest.raises(ValueError, match="x is 2 and not a mapping"):
        with_values(config, {"x.y": 1})


def test_names_are_short_distinct_and_harmless() -> None:
    keys = ["model.init_args.network.init_args.width", "data.init_args.seed", "seed"]
    assert list(short_keys(keys).values()) == ["width", "data.seed", "seed"]
    assert point_name({"model.init_args.widths": [64, 8, 10], "seed": 0}) == "widths=64-8-10,seed=0"
    nasty = point_name({"a": "../<b>/$(rm)"})
    assert "/" not in nasty and "<" not in nasty and "$" not in nasty
    long = [point_name({"a": "x" * 300 + end}) for end in "ab"]
    assert len(set(long)) == 2 and max(map(len, long)) <= 100


def test_fingerprints_ignore_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})

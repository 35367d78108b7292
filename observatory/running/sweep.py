"""The points of a sweep, and dotted keys."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Point = dict[str, Any]  # dotted key to value

WAYS = ("product", "zip")
LONGEST_NAME = 100  # characters; file systems end at 255, and logger files are longer than their folder


def sweep_points(sweep: Mapping[str, Any]) -> list[Point]:
    """Every combination of the lists under `product` with the rows of those under `zip`.

    A mapping with neither of the two keys is a product.

    Raises:
        ValueError: if something is not a list, is empty, or lists to be zipped differ in length.
    """
    parts = split_ways(sweep)
    for key, values in (parts["product"] | parts["zip"]).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"sweep: {key} must be a list of values that is not empty, got {values!r}")
    lengths = {key: len(values) for key, values in parts["zip"].items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        raise ValueError(f"sweep: lists under zip must be equally long, but {told}")
    rows = [dict(zip(lengths, row, strict=True)) for row in zip(*parts["zip"].values(), strict=True)]
    names = list(parts["product"])
    grid = [dict(zip(names, row, strict=True)) for row in itertools.product(*parts["product"].values())]
    points = [one | other for one in grid for other in rows or [{}]]
    if len({fingerprint(point) for point in points}) < len(points):
        raise ValueError("sweep: two of its points are the same; remove the repeated value")
    return points


def split_ways(sweep: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sweep with its ways of combination spelled out."""
    if not set(sweep) & set(WAYS):
        return {"product": dict(sweep), "zip": {}}
    if stray := set(sweep) - set(WAYS):
        raise ValueError(f"sweep: {', '.join(sorted(stray))} stands beside product and zip, put it under one")
    parts = {way: dict(sweep.get(way) or {}) for way in WAYS}
    if both := set(parts["product"]) & set(parts["zip"]):
        raise ValueError(f"sweep: {', '.join(sorted(both))} is under product and under zip")
    return parts


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested mapping with the values of dotted keys put in.

    Raises:
        ValueError: if a key leads through something that is not a mapping.
    """
    changed = copy.deepcopy(dict(config))
    for key, value in values.items():
        *path, last = key.split(".")
        level = changed
        for depth, part in enumerate(path):
            level = level.setdefault(part, {})
            if not isinstance(level, dict):
                before = ".".join(path[: depth + 1])
                raise ValueError(f"{key} cannot be set: {before} is {level!r} and not a mapping")
        level[last] = copy.deepcopy(value)
    return changed


def fingerprint(value: Any) -> str:
    """SHA-256 of a nested mapping, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The shortest endings of dotted keys that tell them apart: model.init_args.width is "width"."""
    parts = {key: [part for part in key.split(".") if part != "init_args"] for key in keys}
    short = {}
    for key, own in parts.items():
        others = [other for name, other in parts.items() if name != key]
        length = next((n for n in range(1, len(own)) if all(o[-n:] != own[-n:] for o in others)), len(own))
        short[key] = ".".join(own[-length:])
    return short


def point_name(point: Mapping[str, Any]) -> str:
    """A point of a sweep as the name of a folder: "widths=64-32-10,seed=0"."""
    short = short_keys(list(point))
    name = ",".join(f"{short[key]}={_told(value)}" for key, value in point.items())
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}-{fingerprint(point)[:8]}"
    return name or "run"


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{str(value.get('class_path', '')).rpartition('.')[2]}-{fingerprint(value)[:8]}".strip("-")
    text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text)

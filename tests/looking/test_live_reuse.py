"""The function kept between updates: the live weights at a fraction of the price, never stale ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from observatory.looking.live import LiveModel


def live(dtype: torch.dtype = torch.float32) -> LiveModel:
    model = LiveModel(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(dtype))
    model.function(select="weight")
    return model


def test_the_same_function_sees_updates_in_place() -> None:
    model = live()
    before = model.same_function(select="weight")
    with torch.no_grad():
        model.module.get_parameter("0.weight").fill_(3)
    after = model.same_function(select="weight")
    assert after is before
    assert torch.equal(after.theta["0.weight"], torch.full((2, 3), 3.0))


@pytest.mark.parametrize("change", ["storage", "frozen", "choice", "half"])
def test_another_storage_or_choice_makes_another_function(change: str) -> None:
    model = live(torch.bfloat16 if change == "half" else torch.float32)
    before = model.same_function(select="weight")
    weight = model.module.get_parameter("0.weight")
    if change == "storage":
        weight.data = torch.ones(2, 3)
    elif change == "half":  # raised to float32 by a copy, which would go stale
        weight.data.fill_(1)
    elif change == "frozen":
        weight.requires_grad_(False)
    after = model.same_function(select="0.weight" if change == "choice" else "weight")
    assert after is not before
    if change == "frozen":
        assert list(after.theta) == ["1.weight"]
    else:
        assert torch.equal(after.theta["0.weight"], weight.float())


def test_gradients_are_those_of_the_last_update() -> None:
    model = live()
    weight = model.module.get_parameter("0.weight")
    assert model.gradients() == {}
    weight.grad = torch.ones(2, 3)
    model.same_function(select="weight")
    assert model.gradients()["0.weight"] is weight.grad

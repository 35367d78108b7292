"""The embedded digits, and what every data module in memory can be asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from observatory.data import Digits, spread_order


def test_splits_are_disjoint_and_together_all_1797_digits() -> None:
    data = Digits()
    splits = [data.dataset(split) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [1258, 180, 359]
    images = torch.cat([split.tensors[0].flatten(1) for split in splits])
    assert len(images.unique(dim=0)) == 1797  # no digit occurs twice in the source either


def test_class_shares_are_those_of_the_whole_in_every_split() -> None:
    data = Digits()
    whole = torch.cat([data.dataset(s).tensors[1] for s in ("train", "val", "test")]).bincount() / 1797
    for split in ("train", "val", "test"):
        labels = data.dataset(split).tensors[1]
        # one cut of a spread order is exact to one example of each class, a split has two cuts
        assert (labels.bincount() - whole * len(labels)).abs().max() < 2


def test_training_pixels_have_mean_zero_and_variance_one() -> None:
    x = Digits().dataset("train").tensors[0]
    assert x.shape == (1258, 1, 8, 8)
    assert x.double().mean().item() == pytest.approx(0, abs=1e-6)  # float32
    assert x.double().std().item() == pytest.approx(1, abs=1e-6)


def test_flat_digits_are_the_same_digits() -> None:
    images, rows = Digits().dataset("train").tensors, Digits(flat=True).dataset("train").tensors
    assert rows[0].shape == (1258, 64)
    assert torch.equal(images[0].flatten(1), rows[0])
    assert torch.equal(images[1], rows[1])


def test_split_depends_on_its_seed_only() -> None:
    labels = Digits().dataset("test").tensors[1]
    assert torch.equal(labels, Digits(seed=5, batch_size=7).dataset("test").tensors[1])
    assert not torch.equal(labels, Digits(split_seed=1).dataset("test").tensors[1])


def test_a_subset_keeps_the_classes_and_the_normalisation() -> None:
    whole, part = Digits(), Digits(subset=200)
    x, y = part.dataset("train").tensors
    assert len(y) == 200
    assert y.bincount().min() >= 18
    rows = {tuple(row) for row in whole.dataset("train").tensors[0].flatten(1).tolist()}
    assert all(tuple(row) in rows for row in x.flatten(1).tolist())
    assert torch.equal(whole.dataset("test").tensors[0], part.dataset("test").tensors[0])


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_shuffled_labels_are_the_same_labels_elsewhere(share: float) -> None:
    def train(data: Digits) -> tuple[Tensor, ...]:
        return data.dataset("train").tensors

    true, shuffled = train(Digits()), train(Digits(shuffle_labels=share))
    assert torch.equal(true[0], shuffled[0])
    assert torch.equal(true[1].bincount(), shuffled[1].bincount())
    kept = (true[1] == shuffled[1]).float().mean().item()
    # a permuted label is right by chance once in ten times; 5 σ of a binomial of 1258
    assert kept == pytest.approx(1 - 0.9 * share, abs=5 * (0.09 / 1258) ** 0.5)
    assert torch.equal(
        Digits().dataset("val").tensors[1], Digits(shuffle_labels=share).dataset("val").tensors[1]
    )


def test_every_prefix_of_a_spread_order_has_the_class_shares_of_the_whole() -> None:
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    order = spread_order(labels, generator=torch.Generator().manual_seed(1))
    assert torch.equal(order.sort().values, torch.arange(100))
    counts = torch.nn.functional.one_hot(labels[order]).cumsum(0)
    expected = torch.arange(1, 101)[:, None] * torch.tensor([0.7, 0.2, 0.1])
    assert (counts - expected).abs().max() <= 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"subset": 5000}, "subset=5000, but there are 1258"),
        ({"shuffle_labels": 1.5}, "between 0 and 1, got 1.5"),
        ({"validation": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"batch_size": 0}, "at least 1, got 0"),
    ],
)
def test_impossible_wishes_are_refused_with_what_was_given(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**wrong).setup("fit")

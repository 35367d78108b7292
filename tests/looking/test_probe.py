"""The probe: fixed examples, drawn without moving anybody's random stream."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_structure
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from observatory.looking import Probe, ProbeRequest, draw_probe, split_batch


class Augmented(Dataset):
    """Draws from all three streams whenever an item is fetched."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.randn(3) + np.random.rand() + random.random(), i % 5


def labelled(n: int = 60, classes: int = 3) -> TensorDataset:
    return TensorDataset(torch.arange(2.0 * n).reshape(n, 2), torch.arange(n) % classes)


def streams() -> tuple:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_drawing_moves_no_stream():
    before = streams()
    loader = DataLoader(Augmented(), batch_size=4, shuffle=True)
    draw_probe(loader, ProbeRequest(10, balanced=True))
    assert streams() == before


def test_same_seed_same_examples_whatever_the_stream_is():
    loader = DataLoader(labelled(), batch_size=4, shuffle=True)
    one = draw_probe(loader, ProbeRequest(10, seed=3))
    torch.manual_seed(99)
    assert draw_probe(loader, ProbeRequest(10, seed=3)).digest() == one.digest()
    assert draw_probe(loader, ProbeRequest(10, seed=4)).digest() != one.digest()
    assert torch.equal(one.inputs, loader.dataset.tensors[0][one.indices])


def test_examples_are_distinct_and_at_most_the_whole_set():
    probe = draw_probe(DataLoader(labelled(8)), ProbeRequest(100))
    assert sorted(probe.indices.tolist()) == list(range(8))


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, range(5, 60)), lambda d: ListLike(d)])
def test_balanced_probe_has_equally_many_of_each_class(wrap):
    targets = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    dataset = wrap(TensorDataset(torch.zeros(60, 2), targets))
    probe = draw_probe(DataLoader(dataset), ProbeRequest(12, balanced=True))
    assert probe.targets.bincount().tolist() == [4, 4, 4]


class ListLike(Dataset):
    def __init__(self, inner: Dataset) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> tuple:
        return self.inner[i]


def test_balance_of_real_valued_targets_is_refused():
    dataset = TensorDataset(torch.zeros(6, 2), torch.rand(6))
    with pytest.raises(ValueError, match=r"one integer label per example, got torch.float32 of shape \(6,\)"):
        draw_probe(DataLoader(dataset), ProbeRequest(2, balanced=True))


def test_empty_and_iterable_data_sets():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(ValueError, match="the train data set is empty"):
        draw_probe(DataLoader(TensorDataset(torch.zeros(0, 2))), ProbeRequest(2))
    with pytest.raises(TypeError, match="no examples to draw by index"):
        draw_probe(DataLoader(Stream()), ProbeRequest(2))


def test_batch_of_another_form_names_the_arguments_to_set():
    batch = {"image": torch.zeros(4, 2), "label": torch.zeros(4)}
    with pytest.raises(
        ValueError, match=r"a batch of type dict is not \(inputs, targets\).*inputs= and targets="
    ):
        split_batch(batch)
    probe = split_batch(batch, inputs=lambda b: b["image"], targets=lambda b: b["label"])
    assert probe.inputs is batch["image"] and probe.targets is batch["label"]


def test_collate_function_of_the_loader_is_used():
    def doubled(items: list) -> tuple:
        return 2 * torch.stack([x for x, _ in items]), torch.tensor([int(y) for _, y in items])

    probe = draw_probe(DataLoader(labelled(), collate_fn=doubled), ProbeRequest(5))
    assert torch.equal(probe.inputs, 2 * labelled().tensors[0][probe.indices])


def test_saved_probe_can_be_read_without_pickle(tmp_path):
    probe = draw_probe(DataLoader(labelled()), ProbeRequest(5))
    probe.save(tmp_path / "probe.npz")
    with np.load(tmp_path / "probe.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["inputs_0"], probe.inputs.numpy())
        assert np.array_equal(stored["indices"], probe.indices.numpy())
        assert str(stored["digest"]) == probe.digest()


@pytest.mark.parametrize(
    "probe",
    [
        Probe(torch.randn(4, 3), torch.arange(4), indices=torch.arange(4), source="train:Set"),
        Probe(torch.randn(4, 3, dtype=torch.float64)),
        Probe({"tokens": torch.arange(8).reshape(4, 2), "mask": None}, (torch.ones(4), [torch.zeros(4)])),
    ],
)
def test_saved_probe_is_loaded_as_it_was(tmp_path, probe):
    probe.save(tmp_path / "probe.npz")
    again = Probe.load(tmp_path / "probe.npz")
    assert again.digest() == probe.digest() and again.source == probe.source
    for one, other in ((again.inputs, probe.inputs), (again.targets, probe.targets)):
        assert tree_structure(one) == tree_structure(other)
        leaves = zip(tree_leaves(one), tree_leaves(other), strict=True)
        assert all(a is b is None or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in leaves)
    assert (again.indices is None) == (probe.indices is None)


def test_probe_that_cannot_be_restored(tmp_path):
    Probe((torch.ones(3), "a string")).save(tmp_path / "other.npz")
    assert Probe.load(tmp_path / "other.npz") is None
    (tmp_path / "torn.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match="is no probe, or is torn"):
        Probe.load(tmp_path / "torn.npz")


@pytest.mark.parametrize("wrong", [{"size": 0}, {"split": "test"}])
def test_impossible_requests_are_refused(wrong):
    with pytest.raises(ValueError, match="got "):
        ProbeRequest(**wrong)


def test_length_is_that_of_the_first_tensor_in_any_nesting():
    assert len(Probe({"tokens": torch.zeros(7, 3), "mask": None})) == 7
    with pytest.raises(ValueError, match="hold no tensor"):
        len(Probe({"tokens": "abc"}))

"""The order of the examples is a function of (seed, epoch) and can be entered anywhere."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from observatory.data import EpochSampler, ResumableLoader, evaluation_loader, training_loader


def batches(loader: DataLoader) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


NUMBERS = TensorDataset(torch.arange(50))


def test_each_epoch_visits_every_example_once_in_its_own_order() -> None:
    sampler = EpochSampler(range(50), seed=3)
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(50))
        assert list(sampler) == orders[-1]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_an_epoch_with_replacement_misses_one_example_in_e() -> None:
    sampler = EpochSampler(range(20000), replacement=True, seed=3)
    seen = len(set(sampler))
    assert len(list(sampler)) == 20000
    assert seen / 20000 == pytest.approx(1 - 1 / math.e, abs=4 * 0.0035)  # four deviations, of 0.49/√N each


def test_neighbouring_seeds_share_no_epoch() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        sampler = EpochSampler(range(50), seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    assert len({order(seed, epoch) for seed in range(5) for epoch in range(5)}) == 25


def test_nothing_moves_the_global_stream() -> None:
    before = torch.random.get_rng_state()
    batches(training_loader(NUMBERS, 8))
    batches(evaluation_loader(NUMBERS, 8))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 4, 7])
def test_a_loader_continues_behind_the_last_batch_handed_out(workers: int, done: int) -> None:
    epoch = 2
    whole, interrupted, resumed = (training_loader(NUMBERS, 8, seed=1, num_workers=workers) for _ in range(3))
    for loader in (whole, interrupted):
        loader.sampler.set_epoch(epoch)
    for _ in itertools.islice(interrupted, done):
        pass
    assert interrupted.state_dict() == {"epoch": epoch, "batches": done}
    resumed.load_state_dict(interrupted.state_dict())
    expected = batches(whole)
    assert batches(resumed) == expected[done:]
    assert resumed.state_dict() == {"epoch": epoch, "batches": 7}
    assert batches(resumed) == expected  # once behind, then from the beginning


def test_the_state_of_a_finished_epoch_does_not_cut_the_next() -> None:
    loader, whole = training_loader(NUMBERS, 8), training_loader(NUMBERS, 8)
    loader.load_state_dict({"epoch": 0, "batches": 5})  # the epoch may have been limited to 5 batches
    for each in (loader, whole):
        each.sampler.set_epoch(1)
    assert batches(loader) == batches(whole)


def test_ranks_share_out_the_order_and_wrap_it_round(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(EpochSampler(range(10), seed=5))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    parts = []
    for rank in range(4):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        parts.append(list(EpochSampler(range(10), seed=5)))
    assert [len(part) for part in parts] == [3, 3, 3, 3]
    assert [i for turn in zip(*parts, strict=True) for i in turn] == whole + whole[:2]


def test_a_loader_over_another_sampler_is_refused() -> None:
    loader = ResumableLoader(NUMBERS, 8, sampler=RandomSampler(NUMBERS))
    with pytest.raises(TypeError, match=r"needs sampler=EpochSampler.*got RandomSampler"):
        next(iter(loader))

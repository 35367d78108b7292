"""What watching may cost: next to nothing where nobody looks, and never more than the budget."""

from __future__ import annotations

import time

import pytest
import torch
from scenes import Outputs, batches, network

import observatory


def test_an_idle_step_costs_less_than_20_microseconds_per_instrument(tmp_path):
    instruments = [Outputs(name=f"idle_{k}") for k in range(5)]
    with observatory.watch(
        network(), probe=batches()[0], instruments=instruments, out=tmp_path, every_n_steps=10**9
    ) as watch:
        fastest = float("inf")
        for _ in range(5):  # the minimum: the machine may have other things to do
            started = time.perf_counter()
            for _ in range(200):
                watch.step()
            fastest = min(fastest, (time.perf_counter() - started) / 200)
    assert fastest / len(instruments) < 20e-6


class Slow(Outputs):
    def observe(self, look):
        time.sleep(0.5)
        return super().observe(look)


@pytest.mark.slow
@pytest.mark.parametrize("total_steps", [None, 13_000])
def test_half_a_second_of_looking_beside_steps_of_5_ms_stays_within_the_budget(tmp_path, total_steps):
    """The share of all looks but the first and the last, in a run of at least 60 s on a real clock."""
    began = time.perf_counter()
    with observatory.watch(
        network(), probe=batches()[0], instruments=[Slow()], out=tmp_path, every_n_steps=1,
        max_overhead=0.05, total_steps=total_steps,
    ) as watch:  # fmt: skip
        while time.perf_counter() - began < 66 and watch.updates < 13_000:
            time.sleep(0.005)
            watch.step()
    seconds = time.perf_counter() - began
    events = observatory.open_run(tmp_path).events("outputs")
    looks = [e["seconds"] for e in events if e["event"] == "look" and not e["free"]]
    assert seconds > 60 and len(looks) >= 3
    assert sum(looks) / seconds < 0.06
    assert [e for e in events if e["event"] == "postponed"]


def test_share_of_cheap_looks_stays_within_the_budget(tmp_path):
    """The same in three seconds: looks of 10 ms beside steps of 1 ms."""

    class Short(Outputs):
        def observe(self, look):
            time.sleep(0.01)
            return {"norm": torch.zeros(())}

    began = time.perf_counter()
    with observatory.watch(
        network(), probe=batches()[0], instruments=[Short()], out=tmp_path, every_n_steps=1, max_overhead=0.05
    ) as watch:
        while time.perf_counter() - began < 3:
            time.sleep(0.001)
            watch.step()
    seconds = time.perf_counter() - began
    looks = [
        e["seconds"]
        for e in observatory.open_run(tmp_path).events("outputs")
        if e["event"] == "look" and not e["free"]
    ]
    # without its length the run may spend what two further seconds would earn
    assert len(looks) >= 3 and sum(looks) <= 0.05 * (seconds + 2)


class Passing(Outputs):
    """Keeps what a sample finds, and leaves gradients off."""

    def __init__(self, **options):
        super().__init__(**options)
        self.looks, self.found = [], []

    def samples_at(self, step, epoch):
        return True

    def sample(self, look):
        self.looks.append(look)
        self.found.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        torch.set_grad_enabled(False)


def test_a_sample_sees_the_same_whatever_the_loop_has_switched_on(tmp_path):
    model, one = network(), Passing()
    with observatory.watch(model, probe=batches()[0], instruments=[one], strict=True) as watch:
        watch.step()
        assert torch.is_grad_enabled()
        with torch.no_grad():
            watch.step()
            assert not torch.is_grad_enabled()
        with torch.autocast("cpu", torch.bfloat16):
            watch.step()
            assert torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    assert one.found == [(True, False)] * 3


def test_looks_of_samples_are_of_their_own_steps_and_of_the_weights_where_they_lie(tmp_path):
    model, one = network(), Passing()
    with observatory.watch(model, probe=batches()[0], instruments=[one], every_n_steps=10**9) as watch:
        watch.step()
        watch.end_epoch()
        watch.step()
        model[0].weight.data = torch.zeros_like(model[0].weight)
        watch.step()
    assert [(look.step, look.epoch) for look in one.looks] == [(1, 0), (2, 1), (3, 1)]
    first, second, third = (look.model.parameters["0.weight"] for look in one.looks)
    assert first is second and first.abs().sum() > 0 and third.abs().sum() == 0


class Repeating(Passing):
    """Says how its samples are repeated, of which every fifth needs a look."""

    def __init__(self, **options):
        super().__init__(**options)
        self.repeated = []

    def sample(self, look):
        self.looks.append(look.step)

    def repeats(self):
        return lambda step: step % 5 != 0 and self.repeated.append(step) is None


def test_samples_are_repeated_without_a_look_until_the_weights_move(tmp_path):
    model, one = network(), Repeating()
    with observatory.watch(model, probe=batches()[0], instruments=[one], every_n_steps=10**9) as watch:
        for step in range(1, 9):
            if step == 7:
                model[0].weight.data = model[0].weight.data.clone()
            watch.step()
    assert (one.looks, one.repeated) == ([1, 5, 7], [2, 3, 4, 6, 8])


def test_samples_of_raised_weights_are_not_repeated(tmp_path):
    """What a look holds are copies: it would repeat those of its own step."""
    model, one = network().bfloat16(), Repeating()
    with observatory.watch(model, probe=batches()[0], instruments=[one], every_n_steps=10**9) as watch:
        for _ in range(4):
            watch.step()
    assert (one.looks, one.repeated) == ([1, 2, 3, 4], [])


def test_a_repetition_that_fails_switches_the_instrument_off(tmp_path):
    class Broken(Repeating):
        def repeats(self):
            return lambda step: 1 / 0

    one = Broken()
    with (
        pytest.warns(UserWarning, match="division by zero"),
        observatory.watch(network(), probe=batches()[0], instruments=[one], out=tmp_path) as watch,
    ):
        for _ in range(4):
            watch.step()
    assert one.looks == [1]

"""What looking may cost, on a clock that the test moves."""

from __future__ import annotations

import pytest

from observatory.observing import budget as module
from observatory.observing.budget import ADVANCE, PLANNED_SHARE, Budget


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    return Clock


def run(clock, budget: Budget, *, step: float, cost: float, steps: int, known: bool = False) -> float:
    """Look whenever it is allowed; the share of wall time that went into looks, first and last included."""
    began = clock.now
    budget.begin()
    spent = 0.0

    def look(free: bool) -> None:
        nonlocal spent
        clock.now += cost
        spent += cost
        budget.charge_look(cost, free=free)

    look(True)
    for _ in range(steps):
        clock.now += step
        if budget.seconds_to_wait(advance=clock.now - began if known else None) == 0.0:
            look(False)
    look(True)
    return spent / (clock.now - began)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("seconds", [60, 61, 62, 65, 67, 100, 300])
def test_share_stays_below_six_percent_with_half_second_looks(clock, known, seconds):
    share = run(clock, Budget(0.05), step=0.005, cost=0.5, steps=seconds * 200, known=known)
    assert 0.03 < share <= 0.06


@pytest.mark.parametrize("overhead", [0.01, 0.05, 0.2])
def test_charged_share_approaches_the_planned_share(clock, overhead):
    budget = Budget(overhead)
    run(clock, budget, step=0.01, cost=0.002, steps=50_000)
    assert budget.share == pytest.approx(PLANNED_SHARE * overhead, rel=0.02)


def test_advance_at_the_start_of_a_run(clock):
    budget = Budget(0.05)
    budget.begin()
    budget.charge_look(0.01, free=True)
    assert budget.seconds_to_wait() == 0.0  # 0.01 s of 0.09 s
    earned = PLANNED_SHARE * 0.05 * ADVANCE
    assert budget.seconds_to_wait(2 * earned) == pytest.approx(ADVANCE)
    assert budget.seconds_to_wait(PLANNED_SHARE * 0.05 * 500.0, advance=500.0) == 0.0
    assert budget.seconds_to_wait(PLANNED_SHARE * 0.05 * 501.0, advance=500.0) == pytest.approx(501.0)


def test_first_and_last_looks_are_free_and_samples_are_not(clock):
    budget = Budget(0.05)
    budget.begin()
    clock.now += 10
    budget.charge_look(3.0, free=True)
    assert budget.spent == 0.0
    budget.charge_other(0.1)
    assert budget.spent == 0.1
    assert budget.training == pytest.approx(10 - 3.1)


def test_without_a_limit_there_is_nothing_to_wait_for(clock):
    budget = Budget(None)
    budget.begin()
    budget.charge_look(1e6)
    assert budget.seconds_to_wait() == 0.0


def test_resumed_budget_goes_on_where_it_was(clock):
    budget = Budget(0.05)
    run(clock, budget, step=0.01, cost=0.05, steps=2000)
    resumed = Budget(0.05)
    resumed.load_state_dict(budget.state_dict())
    resumed.begin()
    assert resumed.share == pytest.approx(budget.share)
    assert resumed.seconds_to_wait() == pytest.approx(budget.seconds_to_wait())


@pytest.mark.parametrize("share", [0.0, -0.1, float("inf"), float("nan")])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ValueError, match=r"share such as 0.05, or None, got"):
        Budget(share)

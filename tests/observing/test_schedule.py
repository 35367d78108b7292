"""When looks are due."""

from __future__ import annotations

import pytest

from observatory.observing.schedule import NEVER, Schedule


def due(schedule: Schedule, last: int, start: int = 0) -> list[int]:
    steps, step = [], start
    while (step := schedule.next_after(step)) <= last:
        steps.append(step)
    return steps


def test_default_is_twelve_per_decade():
    expected = sorted({round(10 ** (k / 12)) for k in range(49)})
    assert due(Schedule(), 10_000) == expected
    assert len([s for s in expected if 100 < s <= 1000]) == 12


@pytest.mark.parametrize("n", [1, 2.5, 12, 40])
def test_log_schedule_does_not_depend_on_where_it_is_asked(n):
    schedule = Schedule(looks_per_decade=n)
    steps = due(schedule, 5000)
    assert [schedule.next_after(s) for s in range(1000)] == [
        next(d for d in steps if d > s) for s in range(1000)
    ]


def test_a_longer_run_continues_the_schedule():
    schedule = Schedule()
    assert due(schedule, 300) + due(schedule, 3000, start=300) == due(schedule, 3000)


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(every_n_steps=10), Schedule(at=[5, 50, 500])])
def test_progress_is_the_share_of_looks_that_were_due(schedule):
    steps = due(schedule, 1000)
    shares = [schedule.progress(step, 1000) for step in steps]
    assert shares == pytest.approx([(k + 1) / len(steps) for k in range(len(steps))])


def test_other_schedules():
    assert due(Schedule(every_n_steps=7), 30) == [7, 14, 21, 28]
    assert due(Schedule(at=[9, 3, 3, 20]), 30) == [3, 9, 20]
    epochs = Schedule(every_n_epochs=3)
    assert epochs.next_after(0) == NEVER
    assert [e for e in range(10) if epochs.due_after_epoch(e)] == [2, 5, 8]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"every_n_steps": 3, "at": [1]}, "one of every_n_steps and at"),
        ({"every_n_steps": 0}, "every_n_steps must be positive, got 0"),
        ({"looks_per_decade": -1.0}, "looks_per_decade must be positive"),
        ({"at": [-1]}, "steps >= 0, got -1"),
    ],
)
def test_impossible_schedules_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**wrong)

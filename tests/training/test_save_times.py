"""Saves by the clock, and when a save that failed is tried again, at times given by the tests."""

import pytest

from gptjax.runs.checkpoint import SaveError
from gptjax.training.save_times import FailedSave, SaveClock

PATIENCE, PAUSE = 100.0, 10.0


class Clock:
    """A clock that stands still."""

    def __init__(self):
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def now() -> Clock:
    return Clock()


def test_a_save_is_wished_for_once_the_time_has_passed_since_the_last_one(now):
    clock = SaveClock(60.0, now)
    assert not clock.wish
    now.time += 59
    assert not clock.wish
    now.time += 1
    assert clock.wish
    clock.restart()
    assert not clock.wish
    now.time += 60
    assert clock.wish


def test_no_time_is_no_wish(now):
    clock = SaveClock(0.0, now)
    now.time += 1e9
    assert not clock.wish


def test_two_processes_save_once_though_their_answers_come_a_call_late(now):
    """The clock of the second is late: it must not make a save due of its own."""
    clocks, saved, wished = (SaveClock(60.0, now), SaveClock(65.0, now)), [], False
    for step in range(1, 201):
        now.time += 1
        answer, wished = wished, any(clock.wish for clock in clocks)
        due = [clock.agreed(answer) for clock in clocks]
        assert due[0] == due[1]
        if due[0]:
            saved.append(step)
            for clock in clocks:
                clock.restart()
    assert saved == [61, 122, 183]


class Disk:
    """A disk that is full or not."""

    def __init__(self, is_full: bool):
        self.is_full = is_full

    def __call__(self) -> bool:
        return not self.is_full


def failed_on(disk: Disk, now: Clock) -> FailedSave:
    return FailedSave(SaveError("first"), PATIENCE, disk, PAUSE, now)


def test_a_full_disk_is_waited_for_and_used_as_soon_as_it_has_room(now):
    disk = Disk(is_full=True)
    failure = failed_on(disk, now)
    now.time += PATIENCE - 1
    assert not failure.is_due
    disk.is_full = False
    assert failure.is_due
    failure.tried()
    assert not failure.is_due
    assert not failure.is_hopeless


def test_what_room_does_not_mend_is_tried_after_pauses(now):
    failure = failed_on(Disk(is_full=False), now)
    tries = []
    for second in range(1, 36):
        now.time += 1
        if failure.is_due:
            tries.append(second)
            failure.tried()
            failure.failed(SaveError("again"))
    assert tries == [10, 20, 30]
    assert not failure.is_hopeless
    assert str(failure.error) == "again"


def test_it_is_given_up_after_its_time_but_not_before_another_try(now):
    failure = failed_on(Disk(is_full=True), now)
    now.time += PATIENCE
    assert not failure.is_hopeless
    assert failure.is_due
    failure.tried()
    assert not failure.is_hopeless
    failure.failed(SaveError("again"))
    assert failure.is_hopeless

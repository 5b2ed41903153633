"""Speed and waits of a row are of the same time, whichever way the calls are run."""

import math
from typing import Any, NamedTuple

import pytest

from gptjax.training.pace import UNMEASURED, Dispatched, Interval, Throughput, is_idle, with_waits


class Number(NamedTuple):
    """A number on a device, which a program may still be computing."""

    there: bool

    def is_ready(self) -> bool:
        return self.there


def call(step: int, is_there: bool = False, steps: int = 1) -> Dispatched:
    metrics: Any = {"loss": Number(is_there)}
    return Dispatched(step, steps, metrics)


def test_waits_are_those_of_the_one_who_asks(clock):
    def items():
        for seconds in (3.0, 0.0, 0.25):
            clock[0] += seconds
            yield seconds

    seen = []
    for item, wait in with_waits(items()):
        seen.append((item, wait))
        clock[0] += 100.0  # what is done with an item is no waiting
    assert seen == [(3.0, 3.0), (0.0, 0.0), (0.25, 0.25)]


def test_devices_wait_for_data_only_if_they_have_done_everything():
    assert [is_idle(last) for last in (None, call(1), call(1, True))] == [True, False, True]


def test_an_interval_goes_from_end_to_end_and_the_first_is_not_measured(clock):
    pace = Throughput()
    pace.wait(0.5)
    first = pace.end()
    assert math.isnan(first.seconds)
    clock[0] += 2.0
    assert pace.end() == Interval(2.0, 0.0)
    clock[0] += 0.5
    pace.wait(0.25)
    assert pace.end() == Interval(0.5, 0.25)


def test_a_pause_is_in_no_interval(clock):
    pace = Throughput()
    pace.end()
    pace.wait(1.0)
    clock[0] += 1000.0
    pace.begin()
    clock[0] += 4.0
    assert pace.end() == Interval(4.0, 0.0)


def test_rates_are_for_each_step_and_against_the_peak():
    rates = Throughput(peak=320.0).rates(Interval(4.0, 1.0), tokens=128, steps=2)
    assert rates == {"tokens_per_second": 32.0, "mfu": 0.1, "data_wait": 0.5}
    rates = Throughput().rates(Interval(4.0, 1.0), tokens=128, steps=2)
    assert rates["tokens_per_second"] == 32.0
    assert math.isnan(rates["mfu"])
    for unknown in (UNMEASURED, Interval(0.0, math.nan)):
        assert all(map(math.isnan, Throughput().rates(unknown, 128, 2).values()))


def through(pace: Throughput, clock: list[float], calls: int, at_once: bool, pauses: set[int]):
    """Calls as the loop makes them: a second each, a tenth of it the wait for the next batch.

    `at_once`: a call runs while it is dispatched; else it runs while the host prepares the next.
    """
    intervals, previous, done_at = [], None, clock[0]

    def fetch(one: Dispatched) -> None:
        clock[0] = max(clock[0], done_at if one is last else done_at - 0.9)
        intervals.append(one.interval or pace.end())

    for number in range(calls):
        clock[0] += 0.1
        pace.wait(0.1)
        done_at = max(clock[0], done_at) + 0.9
        if at_once:
            clock[0] = done_at
        last = call(number, at_once)
        previous, last = pace.seen(previous, last)
        if previous is not None:
            fetch(previous)
        previous = last
        if number in pauses:
            fetch(last)
            clock[0] += 50.0
            pace.begin()
            previous = None
    return intervals


@pytest.mark.parametrize("at_once", [True, False])
def test_neighbouring_calls_have_like_speeds_and_never_wait_longer_than_they_take(clock, at_once):
    intervals = through(Throughput(), clock, 20, at_once, pauses={4, 5, 12, 19})
    assert len(intervals) == 20
    assert math.isnan(intervals[0].seconds)
    for interval in intervals[1:]:
        assert 0.8 < interval.seconds <= 1.1 + 1e-9
        assert interval.waited <= interval.seconds


def test_two_calls_that_are_seen_to_end_together_share_the_time(clock):
    pace = Throughput()
    pace.begin()
    clock[0] += 1.0
    pace.wait(0.5)
    assert pace.seen(None, call(1)) == (None, call(1))  # it is still running
    clock[0] += 1.0
    first, second = pace.seen(call(1), call(2, True))
    assert first is not None
    assert first.interval == second.interval == Interval(1.0, 0.25)
    clock[0] += 3.0
    first, third = pace.seen(second, call(3, True))
    assert first == second
    assert third.interval == Interval(3.0, 0.0)

"""Every second of a run is counted once, whatever ended its starts, and whatever the clock says."""

import json
import math
from typing import Any

import pytest

from gptjax.cluster.phases import Phase
from gptjax.runs.accounts import (
    BETWEEN,
    LOST,
    SPENT_ON,
    DamagedError,
    Start,
    account_in_words,
    as_json,
    gap_before,
    goodput,
    read_accounts,
    seconds_by_kind,
    spent,
    to_go,
)
from gptjax.runs.directory import ACCOUNTS

DAY = 86400.0


def start(began: float = 0.0, **values: Any) -> Start:
    seconds = {"start_up": 10.0, "compiling": 20.0, "training": 60.0, "saving": 10.0}
    made = Start(began, began, seconds, devices=8)
    for name, value in values.items():
        setattr(made, name, value)
    made.ended = began + made.life
    return made


def test_what_is_written_is_read_again(tmp_path):
    assert read_accounts(tmp_path) == []
    starts = [start(5.25, price=2.5, exit=143, from_step=0, to_step=7), start(200.0, gap=94.75)]
    (tmp_path / ACCOUNTS).write_bytes(as_json(starts))
    assert read_accounts(tmp_path) == starts


GOOD = json.loads(as_json([start()]))


def changed(**values: Any) -> dict:
    return {**GOOD, "starts": [{**GOOD["starts"][0], **values}]}


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\0\0\0\0", b"[]", b"7", b"{}", as_json([start()])[:-20],
        *(
            json.dumps(damaged).encode()
            for damaged in (
                {**GOOD, "version": 2}, {**GOOD, "starts": 3}, {**GOOD, "starts": [3]},
                changed(more=1), changed(began="long ago"), changed(ended=math.nan),
                changed(gap=-1.0), changed(lost=-1.0), changed(seconds={"training": -5.0}),
                changed(seconds={"dancing": 5.0}), changed(seconds=None),
            )
        ),
    ],
)  # fmt: skip
def test_a_damaged_account_is_refused(text, tmp_path):
    (tmp_path / ACCOUNTS).write_bytes(text)
    with pytest.raises(DamagedError):
        read_accounts(tmp_path)


@pytest.mark.parametrize(
    ("began", "exit_code", "gap"),
    [
        (150.0, None, 50.0), (150.0, 143, 50.0), (100.0, 70, 0.0),
        (150.0, 0, 0.0),  # it was complete: nothing was to be done
        (100.0 + 30 * DAY, None, 30 * DAY),
    ],
)  # fmt: skip
def test_the_time_between_two_starts_is_counted_if_there_was_something_to_do(began, exit_code, gap):
    assert gap_before(began, start(exit=exit_code)) == (gap, None)
    assert gap_before(began, None) == (0.0, None)


@pytest.mark.parametrize(
    ("began", "words"), [(40.0, "back by 60 s"), (100.0 + 3650 * DAY, "forward by 3,650 days")]
)
def test_a_clock_that_was_set_is_told_and_counts_for_nothing(began, words):
    gap, note = gap_before(began, start())
    assert gap == 0.0
    assert note is not None
    assert words in note


def test_all_kinds_add_up_to_the_wall_clock():
    starts = [start(0.0), start(110.0, gap=10.0, lost=45.0), start(230.0, gap=20.0)]
    seconds = seconds_by_kind(starts)
    assert list(seconds) == list(SPENT_ON)
    assert sum(seconds.values()) == starts[-1].ended - starts[0].began == 330.0
    assert (seconds[LOST], seconds[BETWEEN], seconds[Phase.TRAINING]) == (45.0, 30.0, 135.0)
    assert goodput(seconds) == 135.0 / 330.0
    assert goodput(seconds_by_kind([])) == 0.0


def test_devices_are_paid_while_a_process_lives():
    starts = [start(), start(500.0, gap=400.0, price=3.6, devices=1)]
    assert spent(starts, 7.2) == pytest.approx(8 * 0.2 + 0.1)


def test_what_is_to_go_is_at_the_rate_of_what_repeats_itself():
    """Beginning a start costs nothing more; work need not be steps."""
    starts = [start(from_step=10, to_step=20), start(200.0, from_step=15, to_step=30)]
    work = lambda step: 2.0 * step  # noqa: E731
    assert to_go(starts, 3600.0, work, 40) == pytest.approx(2 * 8 * 70 / 40 * 20)
    assert to_go(starts, 3600.0, work, 30) == 0.0
    assert math.isnan(to_go([start()], 3600.0, work, 40))
    assert math.isnan(to_go([start(from_step=5, to_step=5)], 3600.0, work, 40))


def test_an_account_in_words_has_all_that_there_was():
    seconds = seconds_by_kind([start(), start(4100.0, gap=4000.0)])
    assert account_in_words(seconds) == (
        "2.9% of 1:10:00: start up 20.0 s, compiling 40.0 s, training 0:02:00, saving 20.0 s, "
        "between starts 1:06:40"
    )

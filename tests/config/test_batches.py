"""The batch doubles in equal stages, and no window of the endless order is left out or read twice.

The reference for sizes is one loop over the steps; that for data is the order itself, read one
window a step.
"""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.config import Config
from gptjax.config.batches import BatchSchedule, batch_schedule, rows_problem
from gptjax.data.loader import StepSource, batches_from
from gptjax.data.manifest import Manifest
from gptjax.data.windows import TokenWindows

RAMPS = st.builds(
    lambda first, doublings, steps: BatchSchedule(first, first << doublings, steps),
    st.integers(1, 48),
    st.integers(1, 6),
    st.integers(1, 200),
)


def sizes_of(ramp: BatchSchedule, steps: int) -> list[int]:
    return [ramp.rows(step) for step in range(steps)]


def test_the_batch_doubles_at_the_steps_it_should():
    assert sizes_of(BatchSchedule(2, 16, 6), 9) == [2, 2, 4, 4, 8, 8, 16, 16, 16]
    assert sizes_of(BatchSchedule(3, 12, 5), 7) == [3, 3, 3, 6, 6, 12, 12]


@given(RAMPS)
def test_a_ramp_begins_with_its_first_size_and_ends_with_its_final_one(ramp: BatchSchedule):
    sizes = sizes_of(ramp, ramp.steps + 3)
    assert sizes[0] == ramp.first
    assert sizes[ramp.steps :] == [ramp.final] * 3
    assert max(sizes[: ramp.steps]) < ramp.final
    assert sizes == sorted(sizes)
    assert sorted(set(sizes)) == ramp.sizes()


@given(RAMPS)
def test_stages_are_equal_to_one_step_and_each_doubles_the_one_before(ramp: BatchSchedule):
    stages = [
        (size, len(list(steps))) for size, steps in itertools.groupby(sizes_of(ramp, ramp.steps))
    ]
    lengths = [length for _, length in stages]
    assert max(lengths) - min(lengths) <= 1
    if ramp.steps >= ramp.stages:
        assert [size for size, _ in stages] == [ramp.first << k for k in range(ramp.stages)]


@given(RAMPS, st.integers(0, 400))
def test_rows_before_a_step_are_the_sum_of_the_rows_before_it(ramp: BatchSchedule, step: int):
    assert ramp.rows_before(step) == sum(sizes_of(ramp, step))


@given(st.integers(1, 1000), st.integers(0, 10**9))
def test_without_a_ramp_every_step_is_the_same(rows: int, step: int):
    ramp = BatchSchedule(rows, rows, 0)
    assert (ramp.rows(step), ramp.rows_before(step)) == (rows, rows * step)
    assert (ramp.stages, ramp.sizes()) == (0, [rows])


def test_a_config_s_ramp_is_its_fields_in_rows():
    config = Config()
    assert batch_schedule(config) == BatchSchedule(512, 512, 0)
    train = dataclasses.replace(
        config.train, ramp_from_tokens=2**16, ramp_steps=300, context=256, micro_batch=4
    )
    assert batch_schedule(dataclasses.replace(config, train=train)) == BatchSchedule(256, 2048, 300)


def test_rows_that_do_not_divide_are_named_by_the_field_that_gives_them():
    config = Config()
    train = dataclasses.replace(config.train, batch_rows=15, micro_batch=8)
    problem = rows_problem(dataclasses.replace(config, train=train), 2)
    assert problem is not None
    assert problem.startswith("train.batch_rows 15 ")
    assert problem.endswith("try 16")
    train = dataclasses.replace(train, batch_rows=None, batch_tokens=15 * 1024)
    problem = rows_problem(dataclasses.replace(config, train=train), 2)
    assert problem is not None
    assert problem.startswith("train.batch_tokens 15360 ")


T = 64
SEED = 7


@pytest.fixture(scope="module")
def windows(prepared: Manifest) -> TokenWindows:
    return TokenWindows(prepared, "train", T)


@pytest.fixture(scope="module")
def order(windows: TokenWindows) -> np.ndarray:
    """The first windows of the endless order, across the end of its first epoch."""
    alone = StepSource(windows, BatchSchedule(1, 1, 0), len(windows) + 800, SEED)
    return np.concatenate([alone[step]["tokens"] for step in range(len(alone))])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_window_of_the_endless_order_is_served_once_in_order(
    windows: TokenWindows, order: np.ndarray, data: st.DataObject
):
    """By any number of processes, resumed at any step by any other number of them."""
    first = data.draw(st.sampled_from([8, 16, 24]), "first")
    ramp = BatchSchedule(first, first << data.draw(st.integers(1, 3), "doublings"), 10)
    max_steps = data.draw(st.integers(1, 25), "max_steps")
    resumed = data.draw(st.integers(0, max_steps), "resumed")
    served = []
    for steps in (range(resumed), range(resumed, max_steps)):
        processes = data.draw(st.sampled_from([1, 2, 4, 8]), "processes")
        sources = [
            StepSource(windows, ramp, max_steps, SEED, process, processes)
            for process in range(processes)
        ]
        served += [source[step]["tokens"] for step in steps for source in sources]
    rows = np.concatenate(served)
    np.testing.assert_array_equal(rows, order[: len(rows)])
    assert len(rows) == ramp.rows_before(max_steps)


def test_a_ramp_that_is_read_ahead_from_any_step_goes_on_where_it_was(windows, order):
    ramp = BatchSchedule(8, 64, 9)
    source = StepSource(windows, ramp, 14, SEED)
    for step in (0, 2, 3, 8, 9, 13):
        with batches_from(source, step) as batches:
            read = [batch["tokens"] for batch in batches]
        assert [len(rows) for rows in read] == sizes_of(ramp, 14)[step:]
        start, end = ramp.rows_before(step), ramp.rows_before(14)
        np.testing.assert_array_equal(np.concatenate(read), order[start:end])


def test_an_epoch_of_a_ramp_holds_every_window_once(windows):
    ramp, n = BatchSchedule(8, 64, 9), len(windows)
    steps = next(step for step in itertools.count() if ramp.rows_before(step) >= n)
    source = StepSource(windows, ramp, steps, SEED)
    rows = np.concatenate([source[step]["tokens"] for step in range(steps)])[:n]
    expected = {windows[i].tobytes() for i in range(n)}
    assert len(expected) > 1500
    assert {row.tobytes() for row in rows} == expected

"""Calls of several steps end where anything is due, and their rows are those of the steps."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.config import TrainConfig
from gptjax.config.batches import BatchSchedule
from gptjax.training.feed import by_call, due, rows_of_call, steps_in_call

NO_RAMP = BatchSchedule(4, 4, 0)
NOTHING_DUE = TrainConfig(
    max_steps=100, eval_every_steps=0, sample_every_steps=0, save_every_steps=0, updates_per_call=10
)
cadences = st.integers(0, 30)


def ends(train: TrainConfig, ramp: BatchSchedule, step: int = 0) -> list[int]:
    """The step after which each call of a start at `step` ends."""
    found = []
    while step < train.max_steps:
        step += steps_in_call(train, ramp, step)
        found.append(step)
    return found


def test_calls_are_full_where_nothing_is_due():
    assert ends(NOTHING_DUE, NO_RAMP) == list(range(10, 101, 10))
    assert ends(NOTHING_DUE, NO_RAMP, step=93) == [100]
    assert ends(dataclasses.replace(NOTHING_DUE, max_steps=25), NO_RAMP) == [10, 20, 25]


def test_a_call_ends_where_a_trace_does():
    traced = dataclasses.replace(NOTHING_DUE, max_steps=30, profile="4:3")
    assert ends(traced, NO_RAMP) == [4, 7, 17, 27, 30]


def test_a_call_has_batches_of_one_size():
    assert ends(dataclasses.replace(NOTHING_DUE, max_steps=30), BatchSchedule(1, 4, 15)) == [
        *(8, 15),  # 1 row each, then 2
        *(25, 30),
    ]


@given(cadences, cadences, cadences, st.integers(1, 40), st.integers(0, 99))
@settings(deadline=None)
def test_nothing_is_due_within_a_call(evaluate, sample, save, most, begin):
    train = dataclasses.replace(
        NOTHING_DUE,
        eval_every_steps=evaluate,
        sample_every_steps=sample,
        save_every_steps=save,
        updates_per_call=most,
    )
    last = begin
    for end in ends(train, NO_RAMP, begin):
        assert 1 <= end - last <= most
        assert not any(due(train, step, False, False) for step in range(last + 1, end))
        last = end
    assert last == train.max_steps


def test_every_step_gets_the_rows_that_it_would_get_alone():
    train = dataclasses.replace(NOTHING_DUE, max_steps=23, save_every_steps=8)
    alone = [{"x": np.full((4, 3), step)} for step in range(5, 23)]
    calls = list(by_call(iter(alone), train, NO_RAMP, 5))
    assert [len(batches) for batches in calls] == [3, 8, 7]
    assert [batch["x"][0, 0] for batches in calls for batch in batches] == list(range(5, 23))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_row_has_the_numbers_of_its_step(steps):
    names = ("loss", "learning_rate", "grad_norm", "tokens", "not_finite", "refused")
    metrics = {name: np.arange(5, dtype=np.float32) + 10 * i for i, name in enumerate(names)}
    metrics["not_finite"] = np.array([0, 1, 0, 7, 7], np.float32)
    metrics["refused"] = np.array([0, 0, 1, 7, 7], np.float32)
    if steps == 1:
        metrics = {name: x[0] for name, x in metrics.items()}
    rows = rows_of_call(20, steps, metrics)
    assert [row["step"] for row in rows] == list(range(21 - steps, 21))
    assert rows[0] == {
        "step": 21 - steps,
        "train_loss": 0.0,
        "learning_rate": 10.0,
        "grad_norm": 20.0,
        "tokens": 30,
        "skipped": None,
        "in_a_row": 0,
    }
    if steps == 3:
        assert (rows[1]["grad_norm"], rows[1]["skipped"], rows[1]["in_a_row"]) == (
            None, "not finite", 1
        )  # fmt: skip
        assert (rows[2]["grad_norm"], rows[2]["skipped"], rows[2]["tokens"]) == (None, "spike", 32)

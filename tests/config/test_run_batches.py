"""Whatever becomes of a run's batches, every row of the data is read once, in order."""

import itertools

import pytest

from gptjax.config.batches import BatchSchedule
from gptjax.config.run_batches import RunBatches

SMALL, LARGE = BatchSchedule(4, 4, 0), BatchSchedule(16, 16, 0)
RAMP = BatchSchedule(2, 16, 20)


def places(run: RunBatches, steps: int) -> list[int]:
    return [
        place
        for step in range(steps)
        for place in range(run.rows_before(step), run.rows_before(step) + run.rows(step))
    ]


def after(*changes: tuple[int, BatchSchedule]) -> RunBatches:
    """A run whose batch has changed at each of these steps."""
    run = RunBatches.of(SMALL)
    for step, schedule in changes:
        run = run.continued(step, run.rows_before(step), schedule)
    return run


@pytest.mark.parametrize(
    "changes", [[], [(7, LARGE)], [(7, LARGE), (9, SMALL)], [(3, RAMP)], [(3, RAMP), (11, LARGE)]]
)
def test_every_row_is_read_once_and_in_order_however_the_batch_changes(changes):
    run = after(*changes)
    assert places(run, 40) == list(range(run.rows_before(40)))
    ends = [step for step, _ in changes] + [40]
    sizes = [run.rows(step) for step in range(40)]
    for (begin, end), schedule in zip(
        itertools.pairwise([0, *ends]), [SMALL, *(s for _, s in changes)], strict=True
    ):
        assert sizes[begin:end] == [schedule.rows(step) for step in range(begin, end)]
    assert RunBatches.from_lists(run.as_lists()) == run


def test_a_run_that_goes_on_as_it_was_stays_as_it_was():
    run = after((7, LARGE))
    for step in (7, 8, 30):
        assert run.continued(step, run.rows_before(step)) == run
        assert run.continued(step, run.rows_before(step), LARGE) == run


def test_going_back_forgets_what_came_later_and_may_pass_over_data():
    run = after((7, LARGE), (20, RAMP))
    back = run.continued(10, run.rows_before(13))
    assert places(back, 12) == [*range(run.rows_before(10)), *range(run.rows_before(13), 156)]
    assert back.continued(10, run.rows_before(10)) == after((7, LARGE))
    assert back.schedule == LARGE
    assert run.continued(7, run.rows_before(7), SMALL) == after()

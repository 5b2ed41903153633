"""The best checkpoint is the best among those whose losses can be compared."""

import json
import math

import pytest

from gptjax.runs.ranking import Ranking


def ranking(*losses: tuple[int, str, float]) -> Ranking:
    found = Ranking()
    for step, measure, loss in losses:
        found.add(step, {"val_loss": loss, "val_measure": measure})
    return found


def test_the_lowest_of_the_last_measure_is_the_best():
    found = ranking((100, "1 0", 0.1), (150, "0.5 0.5", 2.0), (200, "0.5 0.5", 1.5))
    assert found.best() == 200
    assert found.best([100, 150]) == 150
    assert found.best([100]) == 100
    assert found.best([]) is None
    leads = lambda loss, measure: found.would_lead({"val_loss": loss, "val_measure": measure})  # noqa: E731
    assert [leads(loss, "0.5 0.5") for loss in (1.4, 1.5, math.nan)] == [True, False, False]
    assert [leads(0.2, measure) for measure in ("1 0", "another")] == [False, True]


def test_of_equal_losses_the_first_is_kept_and_what_is_forgotten_is_not():
    found = ranking((1, "", 2.0), (2, "", 2.0), (3, "", 3.0))
    assert found.best() == 1
    found.drop(1)
    assert found.best() == 2
    found.keep([3])
    assert found.best() == 3


@pytest.mark.parametrize("loss", [None, "1.0", True, [1.0], math.nan, -math.inf])
def test_what_is_no_finite_number_is_no_loss(loss):
    found = Ranking()
    found.read(1, json.dumps({"val_loss": loss}).encode())
    found.read(2, b"{}")
    assert (found.best(), found.unknown()) == (None, [])
    found.read(2, b'{"val_loss": 1.0}')  # as it was before there were measures
    assert (found.best(), found.loss(2)) == (2, 1.0)


def test_a_step_of_unknown_loss_is_not_the_best():
    found = ranking((1, "", 2.0), (2, "", 1.0), (4, "", 3.0), (5, "", 4.0))
    for step, content in ((0, None), (3, b"[]"), (6, b"\xff")):
        found.read(step, content)
    assert (found.best(), found.unknown()) == (2, [0, 3, 6])
    found.keep([1, 3, 6])
    found.drop(6)
    assert (found.best(), found.unknown()) == (1, [3])

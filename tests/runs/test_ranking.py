"""The best checkpoint is the best of those whose losses mean the same."""

import json

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
    assert found.lowest("0.5 0.5") == 1.5
    assert found.lowest("1 0") == 0.1
    assert found.lowest("another") == float("inf")


def test_of_equal_losses_the_first_is_kept_and_what_is_forgotten_is_not():
    found = ranking((1, "", 2.0), (2, "", 2.0), (3, "", 3.0))
    assert found.best() == 1
    found.drop(1)
    assert found.best() == 2
    found.keep([3])
    assert found.best() == 3


def test_cursors_without_a_loss_or_damaged_count_for_nothing(tmp_path):
    found, path = Ranking(), tmp_path / "cursor"
    for text in ("{}", "[]", "", '{"val_loss": null}'):
        path.write_text(text)
        found.read(1, path)
    found.read(1, tmp_path / "missing")
    assert found.best() is None
    path.write_text(json.dumps({"val_loss": 1.0}))  # as it was before there were measures
    found.read(2, path)
    assert (found.best(), found.lowest("")) == (2, 1.0)

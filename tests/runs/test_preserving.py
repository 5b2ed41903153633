"""A checkpoint stays for as long as there is one reason to keep it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gptjax.runs.holding import hold
from gptjax.runs.preserving import preservation
from gptjax.runs.ranking import Ranking


def kept(run: Path, last: int, **reasons: Any) -> list[int]:
    """The steps that stay, of all from 0 to `last`."""
    given = {"latest": 1, "every_steps": 0, "ranking": Ranking, "keeps_all": lambda: False}
    steps: Any = [SimpleNamespace(step=step) for step in range(last + 1)]
    policy: Any = preservation(run=run, **given | reasons)
    decided = policy.should_preserve(steps, context=None)
    return [one.step for one, stays in zip(steps, decided, strict=True) if stays]


def test_the_latest_and_the_milestones_stay(tmp_path):
    assert kept(tmp_path, 9) == [9]
    assert kept(tmp_path, 9, latest=3) == [7, 8, 9]
    assert kept(tmp_path, 9, latest=2, every_steps=4) == [0, 4, 8, 9]


def test_the_best_stays_and_so_does_what_may_be_the_best(tmp_path):
    found = Ranking()
    for step, loss in ((1, 2.0), (2, 1.0), (4, 3.0), (5, 4.0)):
        found.add(step, {"val_loss": loss})
    for step in (0, 3):
        found.read(step, None)
    assert kept(tmp_path, 6, ranking=lambda: found) == [0, 2, 3, 6]


def test_none_goes_while_newer_ones_may_be_bad(tmp_path):
    bad = [True]
    assert kept(tmp_path, 3, keeps_all=lambda: bad[0]) == [0, 1, 2, 3]
    bad[0] = False
    assert kept(tmp_path, 3, keeps_all=lambda: bad[0]) == [3]


def test_steps_that_others_need_stay_until_their_marks_are_gone(tmp_path):
    assert kept(tmp_path, 6) == [6]
    for run in ("one", "other", "one"):
        assert hold(tmp_path, 2, tmp_path / run) is None
    mark = tmp_path / "pinned" / "2"
    assert mark.read_text() == f"{tmp_path / 'one'}\n{tmp_path / 'other'}\n"
    assert kept(tmp_path, 6) == [2, 6]
    mark.unlink()
    assert kept(tmp_path, 6) == [6]
    mark.parent.rmdir()
    mark.parent.touch()  # nothing can be made in there
    assert "cannot be told to keep its step 2" in str(hold(tmp_path, 2, tmp_path / "one"))

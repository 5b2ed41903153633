"""The room for the checkpoints that a run plans: how many, how large, and what is there already."""

import shutil
from types import SimpleNamespace

import pytest

from gptjax.config import TrainConfig
from gptjax.runs.space import BESIDE_ARRAYS, SpaceError, check_space, planned_checkpoints

EACH = 10 * 2**20 - BESIDE_ARRAYS  # bytes of arrays: with what is beside them, 10 MiB
PLAN = {"being written": 1, "newest": 2, "milestones": 4}


def plan(**fields) -> dict[str, int]:
    return planned_checkpoints(TrainConfig(**fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"being written": 1, "newest": 2, "best": 1}),
        ({"keep_every_steps": 3000}, {"being written": 1, "newest": 2, "best": 1, "milestones": 6}),
        ({"eval_every_steps": 0, "keep_latest": 5}, {"being written": 1, "newest": 5}),
        ({"max_steps": 2}, {"being written": 1, "newest": 1}),
        ({"max_steps": 1000, "save_every_minutes": 0.0, "save_every_steps": 0,
          "eval_every_steps": 0}, {"being written": 1}),
        ({"max_steps": 1000, "save_every_minutes": 0.0, "save_every_steps": 500,
          "eval_every_steps": 0}, {"being written": 1, "newest": 2}),
    ],
)  # fmt: skip
def test_checkpoints_are_counted_by_the_reason_for_which_each_is_there(fields, expected):
    assert plan(**fields) == expected


@pytest.fixture
def free(monkeypatch) -> list[int]:
    """The one number of free bytes that every disk has."""
    room = [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room[0]))
    return room


def test_a_disk_with_the_room_for_all_of_them_will_do(tmp_path, free):
    free[0] = 70 * 2**20
    assert check_space(tmp_path, EACH, PLAN) == (
        "7 checkpoints of 10.0 MiB (1 being written, 2 newest, 4 milestones): 70.0 MiB; "
        "70.0 MiB free"
    )


def test_too_little_room_is_refused_with_the_numbers_and_what_to_change(tmp_path, free):
    free[0] = 69 * 2**20
    with pytest.raises(SpaceError) as caught:
        check_space(tmp_path, EACH, PLAN)
    assert caught.value.exit_code == 74
    for words in ("69.0 MiB free", "7 checkpoints of 10.0 MiB", "Delete 1.0 MiB", "--train.keep-"):
        assert words in str(caught.value)


def test_checkpoints_that_are_there_make_room_for_those_to_come(tmp_path, free):
    free[0] = 69 * 2**20
    for step in (5, 6):
        (tmp_path / str(step)).mkdir()
        (tmp_path / str(step) / "arrays").write_bytes(bytes(2**20))
    assert "of which 2.0 MiB are there" in check_space(tmp_path, EACH, PLAN, [5, 6])
    with pytest.raises(SpaceError):
        check_space(tmp_path, EACH, PLAN, [])

"""metrics.jsonl is cut back on resume and never half written."""

import errno
import json
import math
import os
from pathlib import Path

import pytest

from gptjax.base.errors import UserError
from gptjax.runs.metrics import MetricsLog, read_rows

ROWS = [{"step": step, "train_loss": 1.0 / step} for step in range(1, 6)]


def written(path: Path, rows=ROWS, step: int = 0) -> Path:
    log = MetricsLog(path, step)
    for row in rows:
        log.append(row)
    log.close()
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return written(tmp_path / "metrics.jsonl")


def test_a_row_is_a_line_of_json_on_disk_as_soon_as_it_is_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for i, row in enumerate(ROWS, 1):
        log.append(row)
        assert path.read_text() == "".join(json.dumps(r) + "\n" for r in ROWS[:i])
    assert log.rows == ROWS
    log.close()
    assert read_rows(path) == ROWS


def test_without_a_path_rows_are_kept_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = MetricsLog(None, 5)
    for row in ROWS:
        log.append(row)
    log.sync()
    assert log.rows == ROWS
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_numbers_come_back_exactly(tmp_path):
    row = {"step": 1, "train_loss": math.pi * 1e-30, "learning_rate": 1 / 3, "tokens": 2**53 + 1}
    assert read_rows(written(tmp_path / "m", [row])) == [row]


@pytest.mark.parametrize("step", [0, 1, 3, 5, 9])
def test_the_first_row_after_a_step_cuts_off_what_came_later(path, step):
    whole = path.read_bytes()
    log = MetricsLog(path, step)
    assert log.rows == ROWS[:step]
    assert path.read_bytes() == whole  # a start that writes no row changes nothing
    log.append({"step": step + 1})
    assert read_rows(path) == [*ROWS[:step], {"step": step + 1}]
    log.close()


@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_resumed_log_is_byte_for_byte_an_unbroken_one(path, step):
    unbroken = path.read_bytes()
    assert written(path, ROWS[step:], step).read_bytes() == unbroken


def test_a_last_line_cut_off_anywhere_is_ignored(path):
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for end in range(start, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert read_rows(path) == ROWS[:-1]
    path.write_bytes(whole[:-1])
    assert read_rows(path) == ROWS


def test_a_cut_off_line_is_gone_after_reopening(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    log = MetricsLog(path, 5)
    log.append(ROWS[-1])
    log.close()
    assert path.read_bytes() == whole


def test_rows_of_zero_bytes_after_a_power_failure_are_ignored(path):
    with path.open("ab") as file:
        file.write(b"\0" * 100)
    assert read_rows(path) == ROWS


def test_a_log_that_is_not_there_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_what_was_not_measured_is_left_out(tmp_path):
    row = {"step": 1, "a": None, "b": math.nan, "c": math.inf, "d": -math.inf, "e": 0.0, "f": 0}
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.append(row)
    log.close()
    assert log.rows == read_rows(path) == [{"step": 1, "e": 0.0, "f": 0}]
    assert row["a"] is None


def test_reopening_swaps_the_file_under_a_reader_and_leaves_nothing_behind(path):
    whole = path.read_text()
    with path.open() as reader:
        written(path, ROWS[2:3], 2)
        assert reader.read() == whole
    assert read_rows(path) == ROWS[:3]
    assert list(path.parent.iterdir()) == [path]


def test_reopening_that_fails_leaves_the_old_file_as_it_was(path, monkeypatch):
    whole = path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        MetricsLog(path, 2).append(ROWS[2])
    assert path.read_bytes() == whole


def test_sync_forces_this_very_file_to_the_disk(path, monkeypatch):
    synced = []
    log = MetricsLog(path, 4)
    log.sync()  # there is nothing yet
    log.append(ROWS[-1])
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    log.sync()
    log.close()
    assert synced == [path.stat().st_ino]


def test_the_last_row_can_be_amended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.append({"step": 1})
    log.append({"step": 2, "train_loss": 1.0})
    log.amend({"val_loss": 2.0})
    log.append({"step": 3})
    log.close()
    assert read_rows(path) == [
        {"step": 1}, {"step": 2, "train_loss": 1.0, "val_loss": 2.0}, {"step": 3}
    ]  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe", b"[1, 2]", b"\0" * 500, b'{"a": 1}', b"", b"5", b"null", b'{"step": "1"}'],
)
def test_a_damaged_line_is_left_out_and_the_file_is_kept_as_it_was(path, damage):
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:2], damage + b"\n", *lines[3:]])
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged in line 3: fix the line"):
        read_rows(path)
    log, kept = MetricsLog(path, 5), path.with_name("metrics.damaged-1.jsonl")
    assert log.note is not None
    assert "was damaged in line 3: the run goes on without" in log.note
    assert str(kept) in log.note
    assert kept.read_bytes() == damaged
    assert log.rows == read_rows(path) == [*ROWS[:2], *ROWS[3:]]
    assert MetricsLog(path, 5).note is None
    path.write_bytes(damaged + b"more\n")
    assert MetricsLog(path, 5).note is not None
    assert kept.read_bytes() == damaged
    assert path.with_name("metrics.damaged-2.jsonl").read_bytes() == damaged + b"more\n"


def test_rows_are_amended_by_what_was_measured_and_cut_where_a_run_goes_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.append({"step": step})
    log.amend({"val_loss": 2.0, "val_bits_per_byte": None, "val_stderr": float("nan")})
    assert read_rows(path)[-1] == {"step": 3, "val_loss": 2.0}
    log.cut(1)
    assert len(read_rows(path)) == 3  # nothing is lost before there is another row
    log.append({"step": 2, "skipped": None})
    log.close()
    assert read_rows(path) == log.rows == [{"step": 1}, {"step": 2}]


class _Full:
    """A file on a disk that is full in the middle of a line."""

    def __init__(self, path: Path):
        self._path = path

    def write(self, text: str) -> None:
        with self._path.open("a") as file:
            file.write(text[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        pass


def test_a_row_that_finds_no_room_can_be_added_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.append({"step": 1})
    log._file = _Full(path)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(OSError, match="No space left"):
        log.append({"step": 2})
    log.append({"step": 2})
    log.append({"step": 3})
    log.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]

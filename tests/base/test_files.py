"""Locks, atomic writes, and what waits for the disk; a failing file system is named."""

import errno
import os
from pathlib import Path

import pytest

from gptjax.base import files
from gptjax.base.errors import StorageError
from gptjax.base.files import locked
from gptjax.conversion.new_directory import new_directory


def test_a_lock_is_held_by_one_or_shared(tmp_path):
    path = tmp_path / "lock"
    with locked(path) as is_free, locked(path) as again:
        assert (is_free, again) == (True, False)
    with locked(path, shared=True) as is_free, locked(path, shared=True) as again:
        assert (is_free, again) == (True, True)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def fail(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as caught, locked(tmp_path / "lock"):
        pass
    message = f"cannot write {tmp_path / 'lock'}: {os.strerror(number)}. Fix this"
    assert message in str(StorageError.of(caught.value))


def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files.write_atomically(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(tmp_path / "a", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old"}


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    left = files.unique_name(tmp_path / "config.json")
    others = [".hidden", ".x.tmp", "a.0123456789abcdef.tmp", ".lock", "config.json"]
    for path in (left, *(tmp_path / name for name in others)):
        path.write_text("")
    (tmp_path / ".d.0123456789abcdef.tmp").mkdir()
    files.remove_unfinished(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*others, ".d.0123456789abcdef.tmp"}


@pytest.fixture
def on_disk(monkeypatch) -> list[tuple[int, int]]:
    """(device, inode) of what was waited for, in order."""
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(_identity(os.fstat(fd))))
    return seen


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def test_a_new_directory_takes_its_name_when_all_of_it_is_on_the_disk(
    tmp_path, monkeypatch, on_disk
):
    rename, before = Path.rename, []

    def named(path: Path, target: Path) -> Path:
        before.extend(on_disk)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", named)
    with new_directory(tmp_path / "out") as made:
        (made / "inner").mkdir()
        (made / "inner" / "file").write_text("a")
    places = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert set(before) == {_identity(place.stat()) for place in places}


def test_a_file_system_that_cannot_wait_for_directories_is_passed_over(tmp_path, monkeypatch):
    problem = errno.EINVAL

    def refuse(descriptor: int) -> None:
        raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr(os, "fsync", refuse)
    files.reach_disk(tmp_path)
    problem = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        files.reach_disk(tmp_path)

"""Disks that are full, too small for a file, or read-only: the run ends with 74 and one message.

A small tmpfs is filled while a run trains on it, and emptied for the next start.
"""

import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from faulty_runs import STEPS, crashed, ending
from killed_runs import assert_same_run, checkpoints

from gptjax.runs.integrity import verify
from gptjax.training import saving

pytestmark = [
    pytest.mark.slow,
    # Orbax's threads, after a write that failed
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
FULL = 74
PATIENCE = 1.0  # seconds, in place of ten minutes, until a run ends that cannot save


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(saving, "PATIENCE", PATIENCE)


def mount(*words: str) -> bool:
    with suppress(OSError):
        return subprocess.run(["mount", *words], capture_output=True).returncode == 0
    return False


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of its own, of 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=24m", "none", str(place)):
        pytest.skip("a disk can be mounted by root only")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leaving: int = 0) -> None:
    """Fill a disk; a checkpoint needs about 430,000 bytes, a row of metrics.jsonl 200."""
    filler = disk / "filler"
    for at_once in (2**16, 1):
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(at_once))
    os.truncate(filler, filler.stat().st_size - leaving)


def once_saved(cwd: Path, step: int, action: Callable[[], object]) -> Callable[[], None]:
    """`action`, after a wait for the save of a step, which is written in the background."""

    def act() -> None:
        while step not in checkpoints(cwd):
            time.sleep(0.01)
        action()

    return act


def assert_whole(cwd: Path) -> None:
    """Every checkpoint there is one that verifies."""
    assert checkpoints(cwd)
    for step in checkpoints(cwd):
        assert verify(cwd / "run" / "checkpoints" / str(step)) is None


def test_a_full_disk_at_a_save(prepared, disk, unbroken_here, report):
    code, said = ending(prepared, disk, {9: once_saved(disk, 8, lambda: fill(disk, 100_000))})
    assert code == FULL
    assert "could not be written" in said
    assert_whole(disk)
    assert max(checkpoints(disk)) == 8
    code, said = ending(prepared, disk)  # as long as it is full, every start ends like that
    assert code == FULL
    assert max(checkpoints(disk)) == 8
    (disk / "filler").unlink()
    assert ending(prepared, disk) == (0, "")
    assert_same_run(disk, unbroken_here)
    report("disk full at a save", note="ends with 74 while it is full")


def test_a_disk_that_has_room_again(prepared, disk, unbroken_here, report, monkeypatch):
    """Training goes on, and what was to be saved is saved as soon as there is room."""
    monkeypatch.setattr(saving, "PATIENCE", 600.0)
    saved, free = [], (disk / "filler").unlink
    fills = once_saved(disk, 8, lambda: fill(disk, 100_000))
    after = {11: fills, 15: lambda: saved.append(checkpoints(disk)), 16: free}
    assert ending(prepared, disk, after) == (0, "")
    assert max(saved[0]) == 8
    assert_whole(disk)
    assert_same_run(disk, unbroken_here)
    report("disk full for one save")


def test_a_full_disk_at_the_log_and_the_metrics(prepared, disk, unbroken_here, report):
    """Nothing is saved here, so that rows are the first to find no room."""
    fields = {"train.save_every_steps": 0, "train.eval_every_steps": 0}
    fields |= {"train.max_steps": 400, "optim.decay_steps": STEPS}
    code, said = ending(prepared, disk, {5: lambda: fill(disk)}, fields)
    assert code == FULL, said
    assert "No space left" in said
    (disk / "filler").unlink()
    assert ending(prepared, disk) == (0, "")
    assert_same_run(disk, unbroken_here)
    report("disk full at log and metrics")


@pytest.mark.parametrize("name", ["metrics.jsonl", "loss.png"])
def test_a_file_that_may_not_grow(prepared, tmp_path, unbroken_here, report, name):
    """No file may have more bytes than this one has after step 9 (RLIMIT_FSIZE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "run" / name

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))

    try:
        code, said = ending(prepared, tmp_path, {9: once_saved(tmp_path, 8, limit)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == FULL, said
    assert_whole(tmp_path)
    assert ending(prepared, tmp_path) == (0, "")
    assert_same_run(tmp_path, unbroken_here)
    report(f"{name} at its limit (RLIMIT_FSIZE)")


def test_a_read_only_run_directory(prepared, disk, unbroken_here, report):
    crashed(prepared, disk, 14)
    before = {p: p.stat().st_mtime_ns for p in (disk / "run").rglob("*")}
    assert mount("-o", "remount,ro", str(disk))
    code, said = ending(prepared, disk)
    assert code == FULL, said
    assert str(disk) in said
    assert {p: p.stat().st_mtime_ns for p in (disk / "run").rglob("*")} == before
    assert mount("-o", "remount,rw", str(disk))
    assert ending(prepared, disk) == (0, "")
    assert_same_run(disk, unbroken_here)
    report("read-only run directory")


def test_a_run_directory_that_becomes_read_only(prepared, tmp_path, unbroken_here, report):
    """No file can be made there any more; those that are open can be written."""
    if os.geteuid() == 0 and not _may_be_fixed(tmp_path):
        pytest.skip("root may write everywhere, and chattr is not to be had")
    run = tmp_path / "run"

    def forbid() -> None:
        _fix(run / "checkpoints", True)

    try:
        code, said = ending(prepared, tmp_path, {9: once_saved(tmp_path, 8, forbid)})
    finally:
        _fix(run / "checkpoints", False)
    assert code == FULL, said
    assert max(checkpoints(tmp_path)) == 8
    assert ending(prepared, tmp_path) == (0, "")
    assert_same_run(tmp_path, unbroken_here)
    report("checkpoints become read-only")


def _fix(path: Path, fixed: bool) -> bool:
    """Forbid or allow new files in a directory, to root as well."""
    if os.geteuid():
        path.chmod(0o555 if fixed else 0o755)
        return True
    sign = "+" if fixed else "-"
    with suppress(OSError):
        words = ["chattr", f"{sign}i", str(path)]
        return subprocess.run(words, capture_output=True).returncode == 0
    return False


def _may_be_fixed(directory: Path) -> bool:
    (directory / "try").mkdir()
    return _fix(directory / "try", True) and _fix(directory / "try", False)

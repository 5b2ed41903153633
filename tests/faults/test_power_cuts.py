"""A machine that loses its power loses nothing but the steps since its last completed save.

A run writes to a file system that lies in a file. A copy of this file is what would be left if the
power went at that moment: what the system still had in memory is not in it. The next start goes on
from the copy.
"""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import EXHAUSTIVE
from killed_runs import (
    assert_same_run,
    checkpoints,
    ended,
    newest,
    resumed_after,
    start,
    trained,
    unfinished,
    wait_until,
    written,
)
from test_kills import options

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_compilation_for_all")]
SIZE = "96M"
MOMENTS = ("any", "begun", "committed")  # when the power goes: at once, in a save, at its end


@contextmanager
def mounted(disk: Path, place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def disk(tmp_path) -> Path:
    """An empty file system in a file."""
    disk, place = tmp_path / "disk", tmp_path / "place"
    place.mkdir()
    try:
        subprocess.run(["truncate", "-s", SIZE, disk], check=True)
        subprocess.run(["mkfs.ext4", "-q", disk], check=True)
        with mounted(disk, place):
            pass
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system in a file can be mounted by root only")
    return disk


@pytest.mark.parametrize("cuts", [3, pytest.param(20, marks=EXHAUSTIVE)])
def test_power_cuts_at_random_moments_lose_no_completed_save(
    prepared, tmp_path, disk, report, cuts
):
    steps = 40 * cuts
    cwd, whole, after_cut = (tmp_path / name for name in ("place", "whole", "after_cut"))
    whole.mkdir()
    words, chance, complete, most = options(prepared, steps), random.Random(3), [0], 0
    for number in range(cuts):
        moment = MOMENTS[number % len(MOMENTS)]
        with mounted(disk, cwd):
            begun, rows = unfinished(cwd), written(cwd) + chance.randint(8, 30)
            process = start(words, cwd)
            wait_until(lambda enough=rows: written(cwd) >= enough, process)
            seen, begun = checkpoints(cwd), begun | unfinished(cwd)
            if moment == "begun":
                wait_until(lambda old=begun: unfinished(cwd) - old, process)
                time.sleep(chance.uniform(0, 0.1))
            elif moment == "committed":
                wait_until(lambda old=seen: checkpoints(cwd) - old, process)
            process.send_signal(signal.SIGSTOP)  # so that the copy is of one moment
            before, complete = complete, sorted(checkpoints(cwd))
            most = max(most, written(cwd) - newest(cwd))
            shutil.copyfile(disk, after_cut)
            process.kill()
            _, said = ended(process)
        after_cut.replace(disk)
        assert process.returncode == -signal.SIGKILL, said
        # the newest step that was seen may not have been complete: its name was not on the disk
        assert resumed_after(said) in before[-2:], said
        assert "damaged" not in said
    with mounted(disk, cwd):
        said = trained(words, cwd)
        assert resumed_after(said) in complete[-2:]
        assert not (cwd / "run" / "damaged").exists()
        trained(words, whole)
        assert_same_run(cwd, whole)
    report("a power cut at a random moment", cuts, cuts, 0, f"at most {most} steps were done again")

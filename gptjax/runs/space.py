"""The room that the checkpoints of a run will need on its disk."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.base.terminal import bytes_in_words
from gptjax.config import TrainConfig

BESIDE_ARRAYS = 2**16  # bytes of a checkpoint that are no arrays: names, config, signature


class SpaceError(UserError):
    """The disk does not have the room that a run will need."""

    exit_code = 74  # sysexits.h: EX_IOERR; there may be room at another attempt


def planned_checkpoints(train: TrainConfig) -> dict[str, int]:
    """The most checkpoints that lie there at once, by the reason for which each is there."""
    cadences = (train.save_every_steps, train.keep_every_steps, train.eval_every_steps)
    saves = 1 + sum(train.max_steps // n for n in cadences if n)
    left = train.max_steps if train.save_every_minutes else min(train.max_steps, saves)
    milestones = train.max_steps // train.keep_every_steps if train.keep_every_steps else 0
    wanted = {
        "being written": 1,
        "newest": train.keep_latest,
        "best": 1 if train.eval_every_steps else 0,
        "milestones": milestones,
    }
    planned = {}
    for reason, count in wanted.items():
        planned[reason] = min(count, left)
        left -= planned[reason]
    return {reason: count for reason, count in planned.items() if count}


def check_space(
    directory: Path, size: int, planned: dict[str, int], steps: Iterable[int] = ()
) -> str:
    """Compare the free space with what checkpoints of `size` bytes will need; returns it in words.

    The files of `steps`, which lie there already, make room for those to come. Raises `SpaceError`
    with the numbers, and what to change.
    """
    each, count = size + BESIDE_ARRAYS, sum(planned.values())
    there = sum(_bytes_in(directory / str(step)) for step in steps)
    missing, free = max(0, count * each - there), shutil.disk_usage(directory).free
    kinds = ", ".join(f"{n} {reason}" for reason, n in planned.items())
    words = (
        f"{count} checkpoints of {bytes_in_words(each)} ({kinds}): {bytes_in_words(count * each)}"
    )
    if there:
        words += f", of which {bytes_in_words(there)} are there"
    if missing <= free:
        return f"{words}; {bytes_in_words(free)} free"
    fewer = "a lower --train.keep-latest"
    if "milestones" in planned:
        fewer = f"a larger --train.keep-every-steps, {fewer}"
    raise SpaceError(
        f"the disk of {directory} has {bytes_in_words(free)} free, but the run plans {words}. "
        f"Delete {bytes_in_words(missing - free)} or more there, or give {fewer}, or a --run-dir "
        "on another disk. --train.preflight off starts all the same"
    )


def has_room(directory: Path, size: int) -> bool:
    """Whether so many bytes are free where a directory is."""
    with suppress(OSError):  # what is not there, or no disk, may have room
        return shutil.disk_usage(directory).free >= size
    return True


def _bytes_in(step_dir: Path) -> int:
    """The size of all files of a step."""
    total = 0
    for path in step_dir.rglob("*"):
        with suppress(OSError):  # deleted meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total

"""Checkpoints that other runs need: a run of adapters holds the step of its base that it began on.

A file `pinned/STEP` in the base's directory names the runs that need this step, one a line. While
it is there, training the base further does not delete the step. Who needs it no more may delete it.
"""

import os
from pathlib import Path

PINNED = "pinned"


def hold(run: Path, step: int, needed_by: Path) -> str | None:
    """Mark a step of `run` as needed; returns a note if its directory cannot be written to."""
    file, line = run / PINNED / str(step), os.path.abspath(needed_by)
    try:
        file.parent.mkdir(exist_ok=True)
        known = file.read_text().splitlines() if file.is_file() else []
        if line not in known:
            file.write_text("".join(f"{name}\n" for name in [*known, line]))
    except OSError as error:
        return (
            f"note     {run} cannot be told to keep its step {step} ({error.strerror}): if that "
            "run trains on, it may delete the step, which the adapters here need"
        )
    return None


def held_steps(run: Path) -> set[int]:
    """The steps of a run that others need."""
    return {int(mark.name) for mark in (run / PINNED).glob("[0-9]*") if mark.name.isdecimal()}

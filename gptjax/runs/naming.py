"""Names of a checkpoint on every command line: RUN, RUN@best, RUN@latest or RUN@STEP."""

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

from gptjax.base.errors import UserError

BEST, LATEST = "best", "latest"
PARAMS, ADAPTERS, AVERAGED = "params", "adapters", "averaged"  # trees in a checkpoint
ROWS = "rows"  # in a cursor: the rows of the data that were read before its step
BATCHES = "batches"  # in a cursor: the batches of the run until its step, as lists
ROLLBACKS = "rollbacks"  # in a cursor: how often the run had gone back
FORM = f"RUN, RUN@{BEST}, RUN@{LATEST} or RUN@STEP"


class CheckpointName(NamedTuple):
    """A directory, and the checkpoint in it: `best`, `latest`, or a step's number."""

    path: Path
    which: str = BEST
    """`best` is best by the validation, and the newest checkpoint if nothing was validated."""

    def __str__(self) -> str:
        return str(self.path) if self.which == BEST else f"{self.path}@{self.which}"


def read_checkpoint_name(name: str | PathLike[str]) -> CheckpointName:
    """Read `FORM`; a directory whose own name has an @ is taken as it is.

    Raises `UserError` for an empty name, and for anything else after the last @.

    >>> read_checkpoint_name("runs/x@500")
    CheckpointName(path=PosixPath('runs/x'), which='500')
    """
    text = fspath(name)
    if not text:
        raise UserError(f"the name of the model is empty: expected {FORM}")
    path, separator, which = text.rpartition("@")
    if not separator or "/" in which or Path(text).exists():
        return CheckpointName(Path(text))
    is_step = which.isascii() and which.isdecimal()
    if not path or not (is_step or which in (BEST, LATEST)):
        raise UserError(f"{text} names no checkpoint: expected {FORM}")
    return CheckpointName(Path(path), str(int(which)) if is_step else which)


def no_checkpoint(which: str, steps: Sequence[int], directory: Path) -> UserError:
    """The error for a checkpoint that is not among the `steps` of a directory."""
    if not steps:
        return UserError(f"there is no checkpoint in {directory} yet")
    return UserError(
        f"there is no checkpoint {which!r} in {directory}: expected {BEST}, {LATEST} or one of "
        f"{', '.join(map(str, steps))}"
    )

"""Mistakes that a user can fix, kept apart from bugs.

A `UserError` reaches the terminal as one message that says what was expected, what came and what
to do next. Anything else is a bug of ours and keeps its traceback.
"""

import difflib
import errno
from collections.abc import Iterable, Sequence

DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EFBIG),
    *(errno.ENOLCK, errno.ENOSYS),  # a file system without locks
}


class UserError(Exception):
    """A problem outside the program: missing data, a damaged file, a run that cannot continue."""

    exit_code = 1


class ConfigError(UserError):
    """Every problem found in a configuration, listed together (exit code 2, as for bad usage)."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = [f"the configuration has {count}:"] + [f"  - {p}" for p in self.problems]
        super().__init__("\n".join(lines))


class StorageError(UserError):
    """A disk that is full, read-only, broken, or not ours to write."""

    exit_code = 74  # sysexits.h: EX_IOERR

    @classmethod
    def of(cls, error: OSError) -> "StorageError | None":
        """Turn a disk's error into one message; None for an error that may be a bug of ours."""
        if error.errno not in DISK_ERRORS:
            return None
        where = f" {error.filename}" if error.filename else ""
        return cls(f"cannot write{where}: {error.strerror}. Fix this and rerun the same command")


def first_line(said: object) -> str:
    """The first line of a message, or of an error; empty if it says nothing.

    >>> first_line(ValueError("no room\\nin 3 places"))
    'no room'
    """
    return (str(said).strip().splitlines() or [""])[0]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `" (did you mean X?)"` for the known word nearest to `word`, or `""` for none.

    >>> did_you_mean("adam", ["adamw", "lion"])
    ' (did you mean adamw?)'
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""

"""A directory that appears whole or not at all, where nothing was before."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.base.files import unique_name


def require_free(out: Path) -> None:
    """Raise `UserError` unless `out` does not exist, or is an empty directory."""
    if out.is_dir():
        if any(out.iterdir()):
            raise UserError(f"{out} exists and is not empty: choose another --out, or move it away")
    elif out.exists() or out.is_symlink():
        raise UserError(f"{out} is not a directory: choose another --out, or move it away")


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory beside `out` that takes its name if no error comes, and else vanishes.

    Raises `UserError` if it cannot be made.
    """
    temporary = unique_name(out.absolute())
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot make {out}: {error.strerror}. Choose another --out, or mend the place"
        ) from error
    try:
        yield temporary
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise

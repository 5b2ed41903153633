"""A directory that appears whole or not at all, where nothing was before."""

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.base.files import reach_disk, unique_name


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

    It vanishes at SIGINT and SIGTERM too; the latter ends the process with code 143. Raises
    `UserError` if it cannot be made.
    """
    temporary = unique_name(out.absolute())
    with _exit_on_sigterm():
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"cannot make {out}: {error.strerror}. Choose another --out, or mend the place"
            ) from error
        try:
            yield temporary
            reach_disk(*temporary.rglob("*"), temporary)
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into `SystemExit`, so that cleaning up happens, unless it is handled already."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)

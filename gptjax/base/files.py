"""Files that are never half there, hashes of large ones, directories that one process writes in."""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

HASHED_AT_ONCE = 2**22  # bytes


def unique_name(path: Path) -> Path:
    """A name beside `path` that no other thread, process or machine writes to."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when all of it is on the disk.

    No reader and no crash ever sees half of it, and an error, as of a full disk, leaves nothing.
    """
    temporary = unique_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, as `replaced` does."""
    with replaced(path) as file:
        file.write(content)


def sha256_of(path: Path, progress: Callable[[int], None]) -> str:
    """Hexadecimal sha256 of a file of any size; `progress` is told of the bytes just read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while raw := file.read(HASHED_AT_ONCE):
            digest.update(raw)
            progress(len(raw))
    return digest.hexdigest()


@contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[bool]:
    """Hold the lock file `path`, alone or `shared` with others; yields whether that was possible.

    The system releases the lock of a process however it ends. Who holds it alone may unlink it: a
    lock on a file that is no longer the one at `path` keeps nobody out, so the next one is tried.
    """
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:  # of a file system without locks, for one
                raise OSError(error.errno, error.strerror, str(path)) from error
            if _is_at(path, file.fileno()):
                yield True
                return


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

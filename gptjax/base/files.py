"""Writes that are atomic or outlive a power cut, hashes of large files, and lock files."""

import errno
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gptjax.base.errors import UserError

HASHED_AT_ONCE = 2**22  # bytes
_LFS_POINTER = b"version https://git-lfs"


def unique_name(path: Path) -> Path:
    """A name beside `path` that no other thread, process or machine writes to."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` when all of it is on the disk.

    No reader and no crash ever sees half of it. An error, such as a full disk, leaves nothing.
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
    """Replace the file at `path` by `content`, atomically."""
    with replaced(path) as file:
        file.write(content)


def reach_disk(*places: Path) -> None:
    """Wait until files and the entries of directories are on the disk, not in memory alone.

    A file that was not waited for may be empty after a power cut, whatever was renamed since.
    """
    for place in places:
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that cannot do it for directories
                raise
        finally:
            os.close(descriptor)


def remove_unfinished(directory: Path) -> None:
    """Remove what `replaced` has left in a directory whose writers were killed; none may write."""
    for path in directory.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]{16}\.tmp", path.name) and path.is_file():
            with suppress(OSError):  # of a disk that is read-only now
                path.unlink()


def sha256_of(path: Path, progress: Callable[[int], None]) -> str:
    """Hexadecimal sha256 of a file of any size; `progress` gets the number of bytes just read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while raw := file.read(HASHED_AT_ONCE):
            digest.update(raw)
            progress(len(raw))
    return digest.hexdigest()


@contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[bool]:
    """Lock the file `path`, exclusively or `shared` with others; yields whether that succeeded.

    The system releases the lock when the process ends, however it ends. The holder of an exclusive
    lock may unlink the file. A lock on an unlinked file keeps nobody out, so this then locks the
    new file at `path`.
    """
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:  # for example, a file system without locks
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


def require_fetched(path: Path) -> None:
    """Raise `UserError` if a file is only git-lfs's pointer to it; others are left to their reader.

    A clone without git-lfs has such pointers in place of large files.
    """
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return
    if is_pointer:
        raise UserError(
            f"{path} is a pointer of git-lfs, not the file itself: run git lfs pull in its "
            "directory, or download the file"
        )

"""Downloads one file of the hub, whole or not at all, and resumes at the byte where it stopped.

huggingface_hub's own downloads start a file again after a kill. Its `http_get`, on which they are
built, is used here to append to the bytes that have arrived.
"""

import hashlib
import io
import os
import threading
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.base.terminal import ByteProgress
from gptjax.preparation.hub.repository import RemoteFile, Repository, hub_errors

WRITE_BYTES = 2**22


def download(
    repository: Repository,
    file: RemoteFile,
    directory: Path,
    progress: ByteProgress,
    stop: threading.Event,
) -> None:
    """Make sure that a file is in `directory`, with the hash that the hub lists.

    A file that arrives damaged is fetched once more. Raises `UserError` if that does not help, and
    soon after `stop` is set; the bytes that have arrived are kept.
    """
    target, part = directory / file.name, _part(directory, file)
    if _is_whole(target, file):
        return
    for _ in range(2):
        with hub_errors(repository.name.repository), _Counted(part, progress, stop) as out:
            _append(repository, file, out)
        if _is_whole(part, file):
            part.replace(target)
            return
        part.unlink()
        progress(-file.size)
    raise UserError(
        f"{file.name} of {repository.name.repository} arrives damaged: its hash is not "
        f"{file.digest}, which the hub lists; try the same command again later"
    )


def arrived(file: RemoteFile, directory: Path) -> int:
    """Bytes of a file that are in `directory` already."""
    paths = [p for p in (directory / file.name, _part(directory, file)) if p.is_file()]
    return min(file.size, paths[0].stat().st_size) if paths else 0


def _append(repository: Repository, file: RemoteFile, out: "_Counted") -> None:
    """Append the missing bytes of a file."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars

    disable_progress_bars("huggingface_hub.http_get")
    http_get(
        hf_hub_url(
            repository.name.repository,
            file.name,
            repo_type="dataset",
            revision=repository.commit,
        ),
        out,
        resume_size=out.seek(0, os.SEEK_END),
        headers={**build_hf_headers(library_name="gptjax"), "Accept-Encoding": "identity"},
        expected_size=file.size,
    )
    os.fsync(out.fileno())


class _Counted(io.FileIO):
    """A file opened for appending that reports the number of bytes written."""

    def __init__(self, path: Path, progress: ByteProgress, stop: threading.Event):
        super().__init__(path, "a+")
        self.progress, self.stop = progress, stop

    def write(self, chunk: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write all of a chunk, unless `stop` is set."""
        if self.stop.is_set():
            raise UserError("stopped")
        rest = memoryview(chunk)
        while rest:  # a nearly full disk takes a part, and fails at the next
            rest = rest[super().write(rest) :]
        self.progress(len(chunk))
        return len(chunk)


def _is_whole(path: Path, file: RemoteFile) -> bool:
    """Whether a file is there with the size and the hash that the hub lists."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = hashlib.sha256()
    if len(file.digest) == 40:  # not in LFS: git's own hash
        digest = hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("rb") as content:
        while raw := content.read(WRITE_BYTES):
            digest.update(raw)
    return digest.hexdigest() == file.digest


def _part(directory: Path, file: RemoteFile) -> Path:
    """The path where a file arrives; another file of the same name has another path."""
    return directory / f".{file.name}.{file.digest[:16]}.part"

"""Where text comes from: files, directories, patterns, standard input, Python's own library.

Every source becomes a list of `Input`s: plain files of one kind each. What is compressed is
unpacked, and what comes through standard input is stored, in the directory of the work in hand,
since only a plain file can be read from any place by any worker.
"""

import glob
import gzip
import hashlib
import os
import shlex
import shutil
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.base.files import unique_name
from gptjax.config import DataConfig
from gptjax.preparation.documents import HASHED_BYTES

STDIN = "-"
HUB = "hub"
KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
PACKED = (".gz", ".zst", ".zstd")
CHUNK_BYTES = 2**20
# called with the stage (streaming, reading or tokenising) and the bytes and tokens just finished
Progress = Callable[[str, int, int], None]


def silent(stage: str, size: int, tokens: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Input:
    """One file of documents: `text` (one, or many by `separator`), `jsonl` or `parquet`.

    Of kind `hub` it is no file yet: `path` is then the name of a data set to be streamed.
    """

    path: Path
    kind: str = "text"
    field: str = "text"
    separator: str | None = None
    name: str = ""
    """The user's name for it, if it is not the path."""

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        return self.path.stat().st_size

    @property
    def label(self) -> str:
        """The name to show."""
        return self.name or str(self.path)

    @property
    def is_packed(self) -> bool:
        """Whether it has to be unpacked, or stored, before it can be read."""
        return self.is_stream or self.path.suffix.lower() in PACKED

    @property
    def is_stream(self) -> bool:
        """Whether it is no file yet, so that nobody knows its size."""
        return str(self.path) == STDIN or self.kind == HUB


def find_inputs(data: DataConfig) -> list[Input]:
    """The input files of a config in their order, or its hub data set, or its built-in corpus.

    Raises `UserError` that names every missing path, or every path if all are empty, or a path
    that may not be read.
    """
    if data.hub is not None:
        return [Input(Path(data.hub), HUB, data.text_field)]
    if not data.inputs:
        if data.source == "stdlib":
            return standard_library()
        raise UserError("there is nothing to prepare: give text files with --input FILE...")
    if special := [g for g in data.inputs if is_special(Path(g))]:
        raise UserError(
            f"{', '.join(special)} is a pipe or a device, which can be read once only: expected a "
            f"file; try --input - < {shlex.quote(special[0])}"
        )
    out = Path(data.path).absolute()
    try:
        expanded = {given: list(dict.fromkeys(_expand(given, out))) for given in data.inputs}
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    if bad := [given for given, paths in expanded.items() if not paths]:
        raise UserError(
            f"no such text file: {', '.join(bad)}; expected files, directories with files in them, "
            "patterns that match any, or - for standard input"
        )
    if sum(given == STDIN for given in data.inputs) > 1:
        raise UserError("standard input (-) can be read once only, but is given twice")
    inputs = [_input(path, data) for paths in expanded.values() for path in paths]
    if not any(i.is_packed or i.size for i in inputs):
        raise UserError(f"there is no text in {', '.join(data.inputs)}: every file is empty")
    return inputs


def is_special(path: Path) -> bool:
    """Whether a path is there, but is neither a file nor a directory."""
    return path.exists() and not path.is_file() and not path.is_dir()


def text_files(paths: Sequence[str]) -> list[Input]:
    """One document a file, in the order given; empty ones are left out.

    Raises `UserError` that names every path that is no readable file, or where no text is left.
    """
    if bad := [p for p in paths if not Path(p).is_file()]:
        raise UserError(f"no such text file: {', '.join(bad)}; expected paths of UTF-8 text files")
    inputs = [i for i in (Input(Path(p)) for p in paths) if i.size]
    if not inputs:
        raise UserError(f"there is no text in {', '.join(paths)}: every file is empty")
    return inputs


def standard_library() -> list[Input]:
    """The source of the running Python's standard library: about 1,630 files, 29 MB, no download.

    Files that are no UTF-8, a handful of its own test data, are left out.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    # encodings and pydoc_data hold tables and help texts that programs wrote
    skip = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
    paths = sorted(p for p in root.rglob("*.py") if not skip & set(p.relative_to(root).parts))
    return text_files([str(p) for p in paths if _is_utf8(p)])


def unpack(source: Input, directory: Path) -> Input:
    """The input as a plain file: itself, or one in `directory`, which is complete if it is there.

    Raises `UserError` if what is compressed is damaged.
    """
    if not source.is_packed:
        return source
    directory.mkdir(parents=True, exist_ok=True)
    if str(source.path) == STDIN:
        # another text each time: known by what is in it
        path = unique_name(directory / "stdin")
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, CHUNK_BYTES)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()[:16]
        target = path.rename(directory / f"stdin-{digest}")
        return replace(source, path=target, name="standard input")
    status = source.path.stat()
    key = f"{source.path.absolute()} {status.st_size} {status.st_mtime_ns}"
    name = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    target = directory / f"{name}-{source.path.stem}"
    if not target.exists():
        temporary = unique_name(target)
        try:
            with temporary.open("wb") as file:
                file.writelines(_unpacked(source.path))
        except (EOFError, OSError, zlib.error, _zstd_error()) as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno:
                raise
            raise UserError(
                f"{source.path} cannot be unpacked, it is damaged or cut short: {error}"
            ) from error
        temporary.rename(target)
    return replace(source, path=target, name=str(source.path))


def _expand(given: str, out: Path) -> Iterator[Path]:
    """The files of one path, directory or pattern, sorted; never what is being prepared."""
    path = Path(given)
    if given == STDIN or path.is_file():
        yield path
        return
    for match in [path] if path.is_dir() else _matches(given):
        if match.is_file():
            yield match
            continue
        for file in sorted(_files_below(match)):
            own = {out, out.with_name(out.name + ".preparing")}
            is_own = own & {file.absolute(), *file.absolute().parents}
            if not is_own and file.is_file() and _may_be_text(file):
                yield file


def _matches(pattern: str) -> list[Path]:
    """The matches of a pattern, sorted; ** follows no links, which may go round in circles."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return [Path(p) for p in sorted(glob.glob(pattern))]
    at, found = parts.index("**"), []
    for root in glob.glob(str(Path(*parts[:at]))):
        for path in Path(root).glob(str(Path(*parts[at:]))):
            is_hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            # which Python 3.13 has among what ** matches
            is_linked_directory = path.is_symlink() and path.is_dir()
            if not is_hidden and not is_linked_directory:
                found.append(path)
    return sorted(found)


def _files_below(directory: Path) -> Iterator[Path]:
    """All files but hidden ones; raises OSError at a directory that may not be read."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, names, files in os.walk(directory, onerror=refuse):
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _may_be_text(path: Path) -> bool:
    """Whether a file found in a directory is worth reading: by its name, or no NUL at its start."""
    if {path.suffix.lower()} & {*KINDS, *PACKED}:
        return True
    with path.open("rb") as file:
        return b"\0" not in file.read(HASHED_BYTES)


def _input(path: Path, data: DataConfig) -> Input:
    is_packed = path.suffix.lower() in PACKED
    suffix = Path(path.stem).suffix if is_packed else path.suffix
    kind = KINDS.get(suffix.lower(), "text") if data.input_format == "auto" else data.input_format
    return Input(path, kind, data.text_field, data.doc_separator if kind == "text" else None)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text("utf-8")
    except (UnicodeDecodeError, OSError):
        return False
    return True


def _unpacked(path: Path) -> Iterator[bytes]:
    """The contents of a compressed file, chunk by chunk; raises `EOFError` if it is cut short."""
    if path.suffix.lower() == ".gz":
        with gzip.open(path, "rb") as packed:
            while raw := packed.read(CHUNK_BYTES):
                yield raw
        return
    try:
        import zstandard
    except ModuleNotFoundError:
        raise UserError(f"{path} needs zstandard: pip install 'gptjax[hub]'") from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame = None  # a file may hold many, one after the other
    with path.open("rb") as packed:
        while raw := packed.read(2**16):
            while raw:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(raw)
                raw = frame.unused_data
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends within a frame")


def _zstd_error() -> type[Exception]:
    """What a damaged zstd file raises; it can only be raised where zstandard is loaded."""
    module = sys.modules.get("zstandard")
    return EOFError if module is None else module.ZstdError

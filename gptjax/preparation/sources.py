"""Sources of text: files, directories, patterns, standard input, Python's own library.

Every source becomes a list of `Input`s. Compressed files are unpacked, UTF-16 becomes UTF-8, and
standard input is stored, all in the directory of the preparation, since only a plain file can be
read from any place by any worker. Only then is the format of a file known: see `recognition`.
"""

import hashlib
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.base.files import unique_name
from gptjax.config import DataConfig
from gptjax.preparation.contents import CHUNK_BYTES, contents, is_plain
from gptjax.preparation.oddities import Oddities, describe_oddities
from gptjax.preparation.walking import LeftOut, expand

STDIN = "-"
HUB = "hub"
# called with the stage (streaming, reading or tokenising) and the bytes and tokens just finished
Progress = Callable[[str, int, int], None]


def silent(stage: str, size: int, tokens: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Input:
    """One file of documents: `text` (one, or many by `separator`) or records.

    Records are `jsonl` (lines), `json` (arrays, or objects over several lines), `csv` or `parquet`.
    Until the content of an input is read, its kind is that of --format. An input of kind `hub` is
    not a file yet: its `path` is the name of a data set to stream.
    """

    path: Path
    kind: str = "text"
    field: str | None = "text"
    """The field with the text; None if it is not chosen yet, or if the records are texts."""
    separator: str | None = None
    name: str = ""
    """The user's name for it, if it is not the path."""
    delimiter: str = ""
    """The separator between the fields of a row of CSV."""
    has_quotes: bool = True
    """Whether quotation marks around a field of CSV are syntax, not text."""

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        return self.path.stat().st_size

    @property
    def label(self) -> str:
        """The name to show."""
        return self.name or str(self.path)

    @property
    def is_stream(self) -> bool:
        """Whether it is not a file yet, so that its size is unknown."""
        return str(self.path) == STDIN or self.kind == HUB


def find_inputs(data: DataConfig, oddities: Oddities | None = None) -> list[Input]:
    """The input files of a config in their order, or its hub data set, or its built-in corpus.

    `oddities` counts the files that a walk over a directory leaves out. Raises `UserError` that
    names every path without files, or every path if all files are empty.
    """
    if data.hub is not None:
        return [Input(Path(data.hub), HUB, data.text_field)]
    if not data.inputs:
        if data.source == "stdlib":
            return standard_library()
        raise UserError("there is nothing to prepare: give text files with --input FILE...")
    if "" in data.inputs:
        raise UserError("--input is empty: expected files, directories or patterns")
    if special := [g for g in data.inputs if is_special(Path(g))]:
        raise UserError(
            f"{', '.join(special)} is a pipe or a device, which can be read only once: expected a "
            f"file; try --input - < {shlex.quote(special[0])}"
        )
    out = Path(data.path).absolute()
    left_out: LeftOut = {}
    expanded = {
        given: list(dict.fromkeys(expand(given, out, left_out)))
        for given in data.inputs
        if given != STDIN
    }
    oddities = Oddities() if oddities is None else oddities
    for path, kind in left_out.items():
        oddities.add(kind, str(path))
    if bad := [given for given, paths in expanded.items() if not paths]:
        found = "; ".join(describe_oddities(oddities.counts, oddities.first))
        raise UserError(
            f"no such text file: {', '.join(bad)}; expected files, directories with files in them, "
            f"patterns that match files, or - for standard input{found and f'. Found: {found}'}"
        )
    if sum(given == STDIN for given in data.inputs) > 1:
        raise UserError("standard input (-) can be read only once, but is given twice")
    paths: dict[str, Path] = {}
    for path in chain.from_iterable(expanded.get(g, [Path(STDIN)]) for g in data.inputs):
        if (key := os.path.abspath(path)) in paths:
            oddities.add("given_twice", str(path))
        else:
            paths[key] = path
    inputs = [
        Input(path, data.input_format, data.text_field, data.doc_separator)
        for path in paths.values()
    ]
    if not any(i.is_stream or i.size for i in inputs):
        raise UserError(f"there is no text in {', '.join(data.inputs)}: every file is empty")
    return inputs


def is_special(path: Path) -> bool:
    """Whether a path exists, but is neither a file nor a directory."""
    return path.exists() and not path.is_file() and not path.is_dir()


def text_files(paths: Sequence[str]) -> list[Input]:
    """One document a file, in the order given; empty ones are left out.

    Raises `UserError` that names every path that is not a readable file, or if no text is left.
    """
    if bad := [p for p in paths if not Path(p).is_file()]:
        raise UserError(f"no such text file: {', '.join(bad)}; expected paths of UTF-8 text files")
    inputs = [i for i in (Input(Path(p)) for p in paths) if i.size]
    if not inputs:
        raise UserError(f"there is no text in {', '.join(paths)}: every file is empty")
    return inputs


def standard_library() -> list[Input]:
    """The source of the running Python's standard library: about 1,630 files, 29 MB, no download.

    Files that are not UTF-8 (a few of its own test data) are left out.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    # encodings and pydoc_data hold tables and help texts that programs wrote
    skip = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
    paths = sorted(p for p in root.rglob("*.py") if not skip & set(p.relative_to(root).parts))
    return text_files([str(p) for p in paths if _is_utf8(p)])


def unpack(source: Input, directory: Path) -> Input:
    """The input as a plain file: the input itself, or a file in `directory`, complete if it exists.

    Raises `UserError` if the input cannot be read, or if a compressed file is damaged.
    """
    if str(source.path) == STDIN:
        # the text differs each time, so its name comes from its content
        directory.mkdir(parents=True, exist_ok=True)
        path = unique_name(directory / "stdin")
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, CHUNK_BYTES)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()[:16]
        target = path.rename(directory / f"stdin-{digest}")
        return unpack(replace(source, path=target, name="standard input"), directory)
    if is_plain(source.path):
        return source
    directory.mkdir(parents=True, exist_ok=True)
    status = source.path.stat()
    when = 0 if source.name else status.st_mtime_ns
    key = f"{source.path.absolute()} {status.st_size} {when}"
    name = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    target = directory / f"{name}-{source.path.stem}"
    if not target.exists():
        temporary = unique_name(target)
        try:
            with temporary.open("wb") as file:
                file.writelines(contents(source.path))
        except UserError:
            temporary.unlink(missing_ok=True)
            raise
        temporary.rename(target)
    return replace(source, path=target, name=source.label)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text("utf-8")
    except (UnicodeDecodeError, OSError):
        return False
    return True

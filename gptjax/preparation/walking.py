"""The files of directories and patterns, and a count of everything that a walk leaves out.

A walk leaves out files that are hidden, binary, linked or unreadable, and gptjax's own products:
prepared directories, unfinished preparations, runs and checkpoints. So does a pattern, except for
hidden files that it names. A file given by name is read.
"""

import glob
import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.data.foreign import format_by_magic
from gptjax.data.manifest import MANIFEST
from gptjax.preparation.contents import PACKED, contents
from gptjax.preparation.documents import HASHED_BYTES

KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet",
}  # fmt: skip
PREPARING = ".preparing"
LeftOut = dict[Path, str]


def kind_named(path: Path) -> str | None:
    """The format that the name of a file suggests; None for plain text."""
    plain = Path(path.stem) if path.suffix.lower() in PACKED else path
    return KINDS.get(plain.suffix.lower())


def expand(given: str, out: Path, left_out: LeftOut) -> Iterator[Path]:
    """The files of one path, directory or pattern, sorted; never those of `out` itself.

    `left_out` gets each file that is left out, with its kind of oddity.
    """
    path = Path(given)
    if path.is_file():
        yield path
        return
    is_own = cache(_is_own)
    for match in [path] if path.is_dir() else _matches(given, out, left_out, is_own):
        if match.is_dir():
            yield from sorted(_walk(match, out, left_out))
        elif is_own(match.parent):
            left_out[match.parent] = "own_products"
        elif (reason := _reason_to_leave_out(match)) in (None, "hidden"):  # a dot in the pattern
            yield match
        else:
            left_out[match] = reason


def _matches(
    pattern: str, out: Path, left_out: LeftOut, is_own: Callable[[Path], bool]
) -> list[Path]:
    """The matches of a pattern, sorted; ** follows no links, which may go round in circles."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return [Path(p) for p in sorted(glob.glob(pattern))]
    at, found = parts.index("**"), []
    for root in glob.glob(str(Path(*parts[:at]))):
        for path in Path(root).glob(str(Path(*parts[at:]))):
            inner = [*reversed(path.relative_to(root).parents), path.relative_to(root)]
            hidden = next((Path(root, p) for p in inner if p.name.startswith(".")), None)
            if hidden is not None and hidden.absolute() not in _making(out):
                left_out[hidden] = "hidden"
            # Python 3.13 includes it in the matches of **
            is_linked_directory = path.is_symlink() and path.is_dir()
            above = [folder for folder in path.parents if folder.is_relative_to(root)]
            own = [folder for folder in above if is_own(folder)]
            for folder in own:
                if folder.absolute() not in _making(out):
                    left_out[folder] = "own_products"
            if hidden is None and not is_linked_directory and not own:
                found.append(path)
    return sorted(found)


def _walk(directory: Path, out: Path, left_out: LeftOut) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        left_out[Path(error.filename)] = "unreadable"

    for folder, names, files in os.walk(directory, onerror=unreadable):
        here = Path(folder)
        names.sort()
        if _making(out) & {here.absolute(), *here.absolute().parents}:
            names.clear()
        elif _is_own(here):
            left_out[here] = "own_products"
            names.clear()
        else:
            for path in [here / name for name in names]:
                if path.name.startswith(".") or path.is_symlink():
                    left_out[path] = "hidden" if path.name.startswith(".") else "linked"
            names[:] = [name for name in names if not name.startswith(".")]
            for path in sorted(here / name for name in files):
                if (reason := _reason_to_leave_out(path)) is None:
                    yield path
                elif path.absolute() not in _making(out):
                    left_out[path] = reason


def _making(out: Path) -> set[Path]:
    """The paths of this preparation: not counted, because they may exist after a kill."""
    return {out, out.with_name(out.name + PREPARING), out.with_name(f".{out.name}.lock")}


def _reason_to_leave_out(path: Path) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    try:
        if not path.is_file():
            return "linked" if path.is_symlink() else "unreadable"
        head = next(contents(path), b"")[:HASHED_BYTES]
        is_parquet = head.startswith(b"PAR1") or kind_named(path) == "parquet"
        is_binary = b"\0" in head or format_by_magic(head) is not None
        return "binary" if is_binary and not is_parquet else None
    except OSError:
        return "unreadable"
    except UserError:  # damaged, or a package is missing: the reader reports it
        return None


def _is_own(directory: Path) -> bool:
    """Whether gptjax made a directory: data, a preparation, a run or a checkpoint."""
    return (
        directory.name.endswith(PREPARING)
        or (directory / "_CHECKPOINT_METADATA").exists()
        or _has_fields(directory / MANIFEST, {"tokenizer_fingerprint", "splits"})
        or _has_fields(directory / "config.json", {"model", "data", "optim", "train"})
    )


def _has_fields(path: Path, names: set[str]) -> bool:
    try:
        return names <= set(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return False

"""Token files of other trainers: their split, their layout, and whether they hold tokens at all.

A file of bare tokens has no header, so any file with an even number of bytes could be one. Files
that no tokenizer could have made are refused before a model is trained on them.
"""

import codecs
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptjax.base.errors import UserError
from gptjax.data.manifest import SPLITS
from gptjax.data.shards import DTYPES, HEADER_INTS, check_shard, format_of, npy_header, read_header

BEGINNING = 2**12
ENOUGH = 1000  # tokens; fewer are not judged
_NPY = "a .npy file of uint16 or uint32"
_FORMATS = {
    b"\x1f\x8b\x08": "a gzip file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"PK\x03\x04": "a zip file, as .docx, .npz and those of torch.save are",
    b"%PDF-": "a PDF file",
    b"PAR1": "a Parquet file",
    b"\x93NUMPY": "a NumPy file, whose name should end in .npy",
    b"\x89HDF": "an HDF5 file",
    b"\x7fELF": "a program",
}
_CONTROLS = {*range(32), 127} - {*b"\t\n\f\r\x1b"}


@dataclass(frozen=True)
class ForeignFile:
    """A token file, described by its beginning and its size."""

    path: Path
    split: str
    layout: str
    dtype: str
    tokens: int


def find_files(directory: Path) -> list[ForeignFile]:
    """Every token file of a directory, in the order of names, which is the order of their tokens.

    Raises `UserError` if there is none, or if names do not say the split; it lists those names.
    """
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory} to adopt")
    paths = sorted(p for p in directory.iterdir() if p.suffix in (".bin", ".npy") and p.is_file())
    if not paths:
        raise UserError(f"{directory} has no token files: expected names that end in .bin or .npy")
    return recognise_all(paths)


def recognise_all(paths: Sequence[Path]) -> list[ForeignFile]:
    """Find split and layout of each token file of a data set; raises `UserError`."""
    splits = {path: split_of(path.name) for path in paths}
    if unclear := [path.name for path, split in splits.items() if split is None]:
        raise UserError(
            f"{', '.join(unclear)} in {paths[0].parent}: expected train or val in the name of "
            "every token file, to name its split; rename it, or move it away if it is not one"
        )
    files = [_recognise(path, split) for path, split in splits.items() if split is not None]
    if len(types := {file.dtype for file in files}) > 1:
        raise UserError(f"{paths[0].parent} mixes files of {' and '.join(sorted(types))} tokens")
    return files


def split_of(name: str) -> str | None:
    """The split whose name occurs in a file's name; None if neither does, or both do.

    >>> split_of("fineweb_val_000000.bin")
    'val'
    """
    found = [split for split in SPLITS if split in name.lower()]
    return found[0] if len(found) == 1 else None


def _recognise(path: Path, split: str) -> ForeignFile:
    """Find the layout of a token file; raises `UserError` if it is unknown."""
    size = path.stat().st_size
    if path.suffix == ".npy":
        _, shape, dtype = npy_header(path)
        if len(shape) != 1 or dtype.byteorder == ">" or dtype.name not in DTYPES:
            raise UserError(
                f"{path} has shape {shape} of {dtype}, expected one dimension of "
                f"{' or '.join(DTYPES)}"
            )
        file = ForeignFile(path, split, "npy", dtype.name, shape[0])
    elif (dtype := format_of(path)) is not None:
        tokens = int(read_header(path)[2])
        file = ForeignFile(path, split, "llm.c", dtype, tokens)
    else:
        _doubt_beginning(path)
        if size % 2 or size == 0:
            raise UserError(
                f"{path} has {size} bytes and no header of llm.c: it has neither its format nor "
                "nanoGPT's, which is two bytes a token; move it away, or write it again"
            )
        beginning = read_header(path)
        if len(beginning) == HEADER_INTS and beginning[0] and not beginning[3:].any():
            raise UserError(
                f"{path} has a header with magic number {beginning[0]}, not one of llm.c's for "
                "tokens: it has another format, or is damaged"
            )
        file = ForeignFile(path, split, "raw", "uint16", size // 2)
    check_shard(path, file.tokens, file.dtype, file.layout)
    if not file.tokens:
        raise UserError(f"{path} holds no token: move it away")
    return file


def format_by_magic(raw: bytes) -> str | None:
    """The format, neither text nor tokens, that the beginning of a file shows; None if none."""
    if raw[257:262] == b"ustar":
        return "a tar archive"
    return next((what for magic, what in _FORMATS.items() if raw.startswith(magic)), None)


def _doubt_beginning(path: Path) -> None:
    """Raise `UserError` if a file begins like another format, or like text."""
    with path.open("rb") as file:
        raw = file.read(BEGINNING)
    if what := format_by_magic(raw):
        raise UserError(f"{path} is {what}, expected tokens: unpack it, or move it away")
    if len(raw) >= 32 and _CONTROLS.isdisjoint(raw) and _is_utf8(raw):
        raise UserError(
            f"{path} is text, or has one byte a token; expected two bytes a token: tokenise text "
            f"with python -m gptjax.prepare --input, or save tokens as {_NPY}"
        )


def doubt_ids(path: Path, tokens: np.ndarray, tokenizer: str, n_vocab: int) -> None:
    """Raise `UserError` if this tokenizer cannot have made the uint16 `tokens` of a bare file, [N].

    `tokens` may be its first few million.
    """
    if n_vocab > 2**16:
        raise UserError(
            f"{path} has no header and is read as two bytes a token, which hold no id above "
            f"65,535, but {tokenizer} has {n_vocab:,}: give the --tokenizer that made it, or, if "
            f"its tokens are wider, save them as {_NPY}"
        )
    if len(tokens) >= 16 and tokens[::2].any() and not tokens[1::2].any():
        kind = "uint32" if tokens[2::4].any() else "uint64"
        name = repr(str(path))
        anew = f"np.fromfile({name}, np.{kind}).astype(np.uint16).tofile({name})"
        raise UserError(
            f"every second id in {path} is 0: its tokens are {kind}, expected uint16. Write them "
            f"again by python -c {shlex.quote(f'import numpy as np; {anew}')}"
        )
    least, most = int(tokens.min()), int(tokens.max())
    if len(tokens) >= ENOUGH and least == most:
        raise UserError(f"{path} holds only id {most}: it is damaged, or not a token file")
    if len(tokens) < ENOUGH or n_vocab <= 1024:
        return
    if most < 256:
        raise UserError(
            f"{path} has no id above {most}, but {tokenizer} has {n_vocab:,}: these are bytes or "
            "characters. Give the --tokenizer that made them (bytes, or chars with nanoGPT's "
            f"meta.pkl beside it); if it really was {tokenizer}, save them as {_NPY}"
        )
    if int((tokens & 255 | tokens >> 8).max()) < 128:
        raise UserError(
            f"no byte in {path} is above 127: it is text, or has one byte a token, not two bytes a "
            f"token of {tokenizer}; save tokens as {_NPY}"
        )


def are_even(tokens: np.ndarray, n_vocab: int) -> bool:
    """Whether all ids are about equally frequent, as in noise and compressed files, not in text."""
    average = len(tokens) / n_vocab
    return average >= 16 and int(np.bincount(tokens).max()) < 3 * average


def _is_utf8(raw: bytes) -> bool:
    try:  # the last character may be cut
        codecs.getincrementaldecoder("utf-8")().decode(raw, final=len(raw) < BEGINNING)
    except UnicodeDecodeError:
        return False
    return True

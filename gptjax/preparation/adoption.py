"""Adopt token files of other trainers: they stay as they are and get a manifest and a tokenizer.

llm.c and modded-nanogpt write our own format. nanoGPT's `train.bin` and `val.bin` are uint16 tokens
without a header; build-nanogpt's are NumPy files. `train` or `val` in a file's name says which
split it is. Every token is read once: for its hash, for its range, to count documents and bytes.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.files import sha256_of, write_atomically
from gptjax.base.terminal import ByteProgress, byte_bars
from gptjax.data.manifest import (
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Manifest,
    Split,
    is_prepared,
    read_manifest,
)
from gptjax.data.shards import (
    DTYPES,
    HEADER_INTS,
    ShardInfo,
    check_shard,
    format_of,
    npy_header,
    open_shard,
    read_header,
)
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import bytes_per_token, fingerprint, make_tokenizer

CHUNK_TOKENS = 2**22


@dataclass(frozen=True)
class ForeignFile:
    """A token file as its beginning and its size describe it."""

    path: Path
    split: str
    layout: str
    dtype: str
    tokens: int


def find_files(directory: Path) -> list[ForeignFile]:
    """Every token file of a directory, in the order of names, which is that of their tokens.

    Raises `UserError` if there is none, or with every name that tells no split.
    """
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory} to adopt")
    paths = sorted(p for p in directory.iterdir() if p.suffix in (".bin", ".npy") and p.is_file())
    if not paths:
        raise UserError(f"{directory} has no token files: expected names that end in .bin or .npy")
    return recognise_all(paths)


def recognise_all(paths: Sequence[Path]) -> list[ForeignFile]:
    """Tell split and layout of each token file of a data set; raises `UserError`."""
    splits = {path: split_of(path.name) for path in paths}
    if unclear := [path.name for path, split in splits.items() if split is None]:
        raise UserError(
            f"{', '.join(unclear)} in {paths[0].parent}: expected train or val in the name of "
            "every token file, to tell which split it is; rename or move what is no token file"
        )
    files = [recognise(path, split) for path, split in splits.items() if split is not None]
    if len(types := {file.dtype for file in files}) > 1:
        raise UserError(f"{paths[0].parent} mixes files of {' and '.join(sorted(types))} tokens")
    return files


def split_of(name: str) -> str | None:
    """The split whose name is in a file's; None if neither is, or both are."""
    found = [split for split in SPLITS if split in name.lower()]
    return found[0] if len(found) == 1 else None


def recognise(path: Path, split: str) -> ForeignFile:
    """Tell the layout of a token file; raises `UserError` if it is none of those known."""
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
        if size % 2 or size == 0:
            raise UserError(
                f"{path} has {size} bytes and no header of llm.c: it is neither that format nor "
                "nanoGPT's, which is two bytes a token"
            )
        beginning = read_header(path)
        if len(beginning) == HEADER_INTS and beginning[0] and not beginning[3:].any():
            raise UserError(
                f"{path} has a header with magic number {beginning[0]}, which is none of llm.c's "
                "for tokens: it is of another format, or damaged"
            )
        file = ForeignFile(path, split, "raw", "uint16", size // 2)
    check_shard(path, file.tokens, file.dtype, file.layout)
    return file


def adopt(
    directory: Path, tokenizer_name: str, out: Path, progress: ByteProgress = lambda _: None
) -> Manifest:
    """Write manifest and tokenizer of the token files in `directory` into `out`.

    What was adopted already, from files of the same sizes, is returned as it is. Raises `UserError`
    for files that are not what the tokenizer makes.
    """
    files, out = find_files(directory), out.absolute()
    tokenizer = make_tokenizer(tokenizer_name)
    settings = {
        "adopted": str(directory.absolute()),
        "tokenizer": fingerprint(tokenizer),
        "files": [[file.path.name, file.path.stat().st_size] for file in files],
    }
    if is_prepared(out):
        manifest = read_manifest(out)
        if manifest.settings != settings:
            raise UserError(f"{out} holds other data: choose another --out, or move {MANIFEST}")
        return manifest
    try:
        out.mkdir(parents=True, exist_ok=True)
        source = f"adopted from {directory.absolute().name}"
        write_manifest(files, tokenizer, out, source, settings, progress)
    except OSError as error:
        raise UserError(f"cannot adopt {directory}: {error}") from error
    return read_manifest(out)


def write_manifest(
    files: Sequence[ForeignFile],
    tokenizer: Tokenizer,
    out: Path,
    source: str,
    settings: dict[str, Any],
    progress: ByteProgress = lambda _: None,
) -> Manifest:
    """Read every token of `files` and write their manifest and tokenizer into `out`."""
    table = bytes_per_token(tokenizer)
    manifest = Manifest(
        directory=out,
        source=source,
        tokenizer=tokenizer.name,
        n_vocab=tokenizer.n_vocab,
        tokenizer_fingerprint=fingerprint(tokenizer),
        dtype=files[0].dtype,
        splits={
            name: _split([f for f in files if f.split == name], out, tokenizer, table, progress)
            for name in SPLITS
        },
        settings=settings,
    )
    write_atomically(out / TOKENIZER, tokenizer.to_json().encode())
    manifest.write()
    return manifest


def _split(
    files: list[ForeignFile],
    out: Path,
    tokenizer: Tokenizer,
    table: np.ndarray,
    progress: ByteProgress,
) -> Split:
    """Read every token of one split; documents are counted by their end-of-text."""
    shards, documents, size = [], 0, 0
    for file in files:
        tokens = open_shard(file.path, file.tokens, file.dtype, file.layout)
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = tokens[start : start + CHUNK_TOKENS]
            if chunk.max() >= tokenizer.n_vocab:
                raise UserError(
                    f"{file.path} holds token id {chunk.max()}, but {tokenizer.name} ends at "
                    f"{tokenizer.n_vocab - 1}: another --tokenizer made it, or it is damaged"
                )
            documents += int((chunk == tokenizer.eot_id).sum())
            size += int(table[chunk].sum(dtype=np.int64))
        path = file.path.absolute()
        name = path.name if path.parent == out else str(path)
        shards.append(ShardInfo(name, file.tokens, sha256_of(path, progress), file.layout))
    return Split(sum(s.tokens for s in shards), documents, size, tuple(shards))


def adopt_with_progress(directory: Path, tokenizer_name: str, out: Path) -> Manifest:
    """Adopt on a terminal: a progress bar while files are read, totals when they are."""
    total = sum(file.path.stat().st_size for file in find_files(directory))
    with byte_bars() as bar:
        task = bar.add_task("reading", total=total)
        manifest = adopt(directory, tokenizer_name, out, lambda done: bar.advance(task, done))
    print_splits(manifest)
    print(f"now try: --data.path {shlex.quote(str(out))}")
    return manifest


def print_splits(manifest: Manifest) -> None:
    """Say what is in token files that have a manifest."""
    for name, split in manifest.splits.items():
        print(
            f"{name:5}  {split.tokens:,} tokens in {len(split.shards)} files, {split.documents:,} "
            f"documents, {split.bytes / max(1, split.tokens):.2f} bytes per token"
        )

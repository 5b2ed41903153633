"""Adopt token files of other trainers: they stay as they are and get a manifest and a tokenizer.

llm.c and modded-nanogpt write our own format. nanoGPT's `train.bin` and `val.bin` are uint16 tokens
without a header; a `meta.pkl` beside them means that the tokens are characters. build-nanogpt's are
NumPy files. `train` or `val` in a file's name says which split it is. Every token is read, to hash
it, to check its range, and to count documents and bytes.

With `shard_tokens` the tokens are copied into shards of our own.
"""

import dataclasses
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.base.errors import ConfigError, UserError
from gptjax.base.files import sha256_of, write_atomically
from gptjax.base.terminal import ByteProgress, byte_bars
from gptjax.data.foreign import ForeignFile, are_even, doubt_ids, find_files
from gptjax.data.manifest import (
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Manifest,
    Split,
    is_prepared,
    read_manifest,
)
from gptjax.data.shards import ShardInfo, open_shard, token_dtype, write_shards
from gptjax.preparation.workspace import locked_workspace, publish, settings_diff
from gptjax.tokenizers.nanogpt import META, read_characters
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import bytes_per_token, fingerprint, make_tokenizer

CHUNK_TOKENS = 2**22


def tokenizer_of(directory: Path, name: str | None) -> Tokenizer:
    """The tokenizer `name` of token files, or the characters that nanoGPT stored beside them.

    Raises `UserError` if there is neither, or if the two contradict each other.
    """
    meta = directory / META
    if meta.exists():
        if name not in (None, "chars"):
            raise UserError(
                f"{meta} says that the tokens are characters, but --tokenizer says {name}: leave "
                f"out --tokenizer, or move {META} away"
            )
        return read_characters(meta)
    if name == "chars":
        raise UserError(
            f"--tokenizer chars needs the characters of the tokens, which nanoGPT stores in "
            f"{META}, but {directory} has none: copy it there, or give a tokenizer's JSON file"
        )
    if name is None:
        raise ConfigError(
            [
                "--adopt needs the --tokenizer that made the files (gpt2, tiktoken:ENCODING or a "
                f"tokenizer's JSON file), or nanoGPT's {META} beside them"
            ]
        )
    return make_tokenizer(name)


def adopt(
    directory: Path,
    tokenizer_name: str | None,
    out: Path,
    progress: ByteProgress = lambda _: None,
    shard_tokens: int | None = None,
) -> Manifest:
    """Write manifest and tokenizer of the token files in `directory` into `out`.

    With `shard_tokens`, also write their tokens, as shards of that size. Data adopted before from
    files of the same sizes is returned as it is. Raises `UserError` for files that the tokenizer
    cannot have made.
    """
    files, out = find_files(directory), out.absolute()
    tokenizer = tokenizer_of(directory, tokenizer_name)
    settings = {
        "adopted": str(directory.absolute()),
        "tokenizer": fingerprint(tokenizer),
        "files": [[file.path.name, file.path.stat().st_size] for file in files],
        "shard_tokens": shard_tokens,
    }
    if is_prepared(out):
        manifest = read_manifest(out)
        if found := settings_diff({"shard_tokens": None, **manifest.settings}, settings):
            raise UserError(
                f"{out} holds other data: choose another --out, or move {MANIFEST} away ({found})"
            )
        return manifest
    stored, content = out / TOKENIZER, tokenizer.to_json().encode()
    if (is_there := stored.exists()) and stored.read_bytes() != content:
        raise UserError(f"{stored} is another tokenizer: choose another --out, or move it away")
    source = f"adopted from {directory.absolute().name}"
    made = partial(write_manifest, files, tokenizer, source=source, settings=settings)
    if shard_tokens is None:
        try:
            made(out, progress=progress)
        except OSError as error:
            if not is_there:
                stored.unlink(missing_ok=True)
            with suppress(OSError):
                out.rmdir()  # if it is empty
            raise UserError(f"cannot adopt {directory}: {error}") from error
        return read_manifest(out)
    with locked_workspace(str(out)) as (out, work):
        try:
            publish(work, out, made(work, progress=progress, shard_tokens=shard_tokens))
        except OSError as error:
            raise UserError(f"cannot adopt {directory}: {error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)  # if it was not published
    return read_manifest(out)


def write_manifest(
    files: Sequence[ForeignFile],
    tokenizer: Tokenizer,
    out: Path,
    source: str,
    settings: dict[str, Any],
    progress: ByteProgress = lambda _: None,
    shard_tokens: int | None = None,
) -> Manifest:
    """Read every token of `files` and write their manifest and tokenizer into `out`.

    With `shard_tokens`, also write their tokens, as shards.
    """
    table, notes = bytes_per_token(tokenizer), Counter[str]()
    of_split = {name: [file for file in files if file.split == name] for name in SPLITS}
    splits = {
        name: _split(found, out, tokenizer, table, notes, progress)
        for name, found in of_split.items()
    }
    dtype = files[0].dtype if shard_tokens is None else token_dtype(tokenizer.n_vocab)
    out.mkdir(parents=True, exist_ok=True)
    if shard_tokens is not None:
        for name, found in of_split.items():
            parts, total = chain.from_iterable(map(_parts, found)), splits[name].tokens
            shards = write_shards(out, name, parts, total, dtype, shard_tokens)
            splits[name] = dataclasses.replace(splits[name], shards=shards)
    manifest = Manifest(
        directory=out,
        source=source,
        tokenizer=tokenizer.name,
        n_vocab=tokenizer.n_vocab,
        tokenizer_fingerprint=fingerprint(tokenizer),
        dtype=dtype,
        splits=splits,
        settings=settings,
        notes=dict(notes),
    )
    write_atomically(out / TOKENIZER, tokenizer.to_json().encode())
    manifest.write()
    return manifest


def _parts(file: ForeignFile) -> Iterator[np.ndarray]:
    """The tokens of a file, a few million at a time."""
    tokens = open_shard(file.path, file.tokens, file.dtype, file.layout)
    for start in range(0, len(tokens), CHUNK_TOKENS):
        yield tokens[start : start + CHUNK_TOKENS]


def _split(
    files: list[ForeignFile],
    out: Path,
    tokenizer: Tokenizer,
    table: np.ndarray,
    notes: Counter[str],
    progress: ByteProgress,
) -> Split:
    """Read every token of one split; documents are the stretches between end-of-texts."""
    shards, documents, size, is_after_end = [], 0, 0, True
    for file in files:
        for number, chunk in enumerate(_parts(file)):
            if number == 0 and file.layout == "raw":
                doubt_ids(file.path, chunk, tokenizer.name, tokenizer.n_vocab)
                if are_even(chunk, tokenizer.n_vocab):
                    notes["even_ids"] += 1
            if chunk.max() >= tokenizer.n_vocab:
                raise UserError(
                    f"{file.path} holds token id {chunk.max()}, but {tokenizer.name} ends at "
                    f"{tokenizer.n_vocab - 1}: another --tokenizer made it, or it is damaged, or "
                    "not a token file"
                )
            is_text = chunk != tokenizer.eot_id
            documents += int((is_text[1:] & ~is_text[:-1]).sum()) + int(is_text[0] & is_after_end)
            is_after_end = not is_text[-1]
            size += int(table[chunk].sum(dtype=np.int64))
        path = file.path.absolute()
        name = path.name if path.parent == out else str(path)
        shards.append(ShardInfo(name, file.tokens, sha256_of(path, progress), file.layout))
    return Split(sum(s.tokens for s in shards), documents, size, tuple(shards))


def adopt_with_progress(
    directory: Path, tokenizer_name: str | None, out: Path, shard_tokens: int | None
) -> None:
    """Adopt on a terminal: show a progress bar, then the totals."""
    total = sum(file.path.stat().st_size for file in find_files(directory))
    with byte_bars() as bar:
        task = bar.add_task("reading", total=total)
        advance = partial(bar.advance, task)
        manifest = adopt(directory, tokenizer_name, out, advance, shard_tokens)
    if even := manifest.notes.get("even_ids"):
        print(
            f"note: in {even} files without a header all ids are about equally frequent, as in "
            "noise or a compressed file: look at the text of --inspect before you train on them"
        )
    print_splits(manifest)
    print(f"now try: --data.path {shlex.quote(str(out))}")


def print_splits(manifest: Manifest) -> None:
    """Print the totals of token files that have a manifest."""
    for name, split in manifest.splits.items():
        print(
            f"{name:5}  {split.tokens:,} tokens in {len(split.shards)} files, {split.documents:,} "
            f"documents, {split.bytes / max(1, split.tokens):.2f} bytes per token"
        )

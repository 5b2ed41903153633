"""Turn documents into a prepared data set: tokenise, write shards, and the manifest last.

All of it happens in `OUT.preparing`, which is renamed to `OUT` when it is complete: a killed
preparation leaves nothing that could be taken for data.
"""

import os
import shlex
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.config import Config, DataConfig
from gptjax.data.bpe import train_bpe
from gptjax.data.manifest import (
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Manifest,
    Split,
    is_prepared,
    read_manifest,
)
from gptjax.data.shards import SHARD_TOKENS, ShardInfo, token_dtype, write_shard
from gptjax.data.sources import (
    Document,
    content_hash,
    split_documents,
    standard_library,
    text_files,
)
from gptjax.data.tokenizers import (
    Tokenizer,
    collect_characters,
    fingerprint,
    identity,
    make_tokenizer,
)
from gptjax.errors import UserError
from gptjax.files import locked, write_atomically

Progress = Callable[[int], None]  # called with the number of bytes just finished


def find_documents(data: DataConfig) -> list[Document]:
    """The documents a config names: its text files, or its embedded source."""
    if data.inputs:
        return text_files(data.inputs)
    if data.source == "stdlib":
        return standard_library()
    raise UserError("there is nothing to prepare: give text files with --input FILE...")


def prepare(
    data: DataConfig,
    documents: Sequence[Document],
    progress: Progress = lambda _: None,
    shard_tokens: int = SHARD_TOKENS,
) -> Manifest:
    """Prepare `documents` as `data` says, into `data.path`; returns the manifest.

    A finished data set made with the same settings is returned as it is. Raises `UserError` if
    `data.path` holds anything else.
    """
    out = Path(data.path).absolute()
    settings = _settings(data, documents, shard_tokens)
    if existing := _existing(out, settings):
        return existing
    work = out.with_name(out.name + ".preparing")
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        with locked(work.with_suffix(".lock")) as is_free:
            if not is_free:
                raise UserError(f"another process is preparing {data.path}: wait for it")
            shutil.rmtree(work, ignore_errors=True)  # what a killed preparation left
            work.mkdir()
            try:
                _write(data, documents, settings, work, progress)
                work.rename(out)
            finally:
                shutil.rmtree(work, ignore_errors=True)
                work.with_suffix(".lock").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {data.path}: {error.strerror or error}; nothing was left there"
        ) from error
    return read_manifest(out)


def _write(
    data: DataConfig,
    documents: Sequence[Document],
    settings: dict[str, Any],
    work: Path,
    progress: Progress,
) -> None:
    """Write tokenizer, shards and, last, the manifest into the directory `work`."""
    parts = split_documents(documents, data.val_fraction)
    tokenizer = _tokenizer(data.tokenizer or "bytes", parts)
    write_atomically(work / TOKENIZER, tokenizer.to_json().encode())
    splits = {
        name: _write_split(name, parts, tokenizer, work, settings["shard_tokens"], progress)
        for name in SPLITS
    }
    Manifest(
        directory=work,
        source=settings["source"],
        tokenizer=tokenizer.name,
        n_vocab=tokenizer.n_vocab,
        tokenizer_fingerprint=fingerprint(tokenizer),
        dtype=token_dtype(tokenizer.n_vocab),
        splits=splits,
        settings=settings,
    ).write()


def prepare_with_progress(data: DataConfig) -> Manifest:
    """Prepare on a terminal: a progress bar while it runs, totals when it is done."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    documents = find_documents(data)
    total = sum(document.size for document in documents)
    for document in documents:
        if not document.is_utf8():
            print(f"note: {document.path} is not UTF-8 text: what is not becomes U+FFFD")
    print(
        f"preparing {data.path}: {len(documents):,} documents, {total / 1e6:,.1f} MB, tokenizer "
        f"{data.tokenizer or 'bytes'}",
        flush=True,
    )
    columns = (TextColumn("tokenising"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("", total=total)
        manifest = prepare(data, documents, lambda done: bar.advance(task, done))
    for name, split in manifest.splits.items():
        per_token = split.bytes / max(1, split.tokens)
        print(
            f"{name:5}  {split.tokens:,} tokens in {len(split.shards)} shards from "
            f"{split.documents:,} documents, {per_token:.2f} bytes per token"
        )
    return manifest


def how_to_prepare(config_name: str, config: Config) -> str:
    """The command that makes the data of a config, for error messages."""
    words = ["python -m gptjax.prepare --config", shlex.quote(config_name)]
    if config.data.source is None:
        words += ["--input", *(map(shlex.quote, config.data.inputs or ["FILE..."]))]
    return " ".join([*words, "--out", shlex.quote(config.data.path)]).replace(
        "'FILE...'", "FILE..."
    )


def _settings(data: DataConfig, documents: Sequence[Document], shard_tokens: int) -> dict[str, Any]:
    """The choices that decide every token written."""
    files = ", ".join(d.path.name for d in documents)
    return {
        "source": files if data.inputs or not data.source else data.source,
        "bytes": sum(d.size for d in documents),
        "content": content_hash(documents),
        "tokenizer": identity(data.tokenizer or "bytes"),
        "val_fraction": data.val_fraction,
        "shard_tokens": shard_tokens,
    }


def _existing(out: Path, settings: dict[str, Any]) -> Manifest | None:
    """The data set already in `out`, or None where there is nothing; refuses anything else."""
    if is_prepared(out):
        manifest = read_manifest(out)
        if manifest.settings == settings:
            return manifest
        differences = "; ".join(
            f"{k} was {manifest.settings.get(k)!r}, now {v!r}"
            for k, v in settings.items()
            if manifest.settings.get(k) != v
        )
        raise UserError(
            f"{out} holds data prepared differently ({differences}): choose another "
            "--out, or move that directory away"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} exists and is no prepared data set (no {MANIFEST}): choose another --out"
        )
    if out.exists():
        out.rmdir()
    return None


def _tokenizer(name: str, parts: Sequence[Document]) -> Tokenizer:
    """Make the tokenizer: a BPE from the training text alone, an alphabet from all of it."""
    kind, _, size = name.partition(":")
    if kind == "chars":
        return collect_characters(text for d in parts for text in d.pieces())
    if kind != "bpe":
        return make_tokenizer(name)
    return train_bpe((t for d in parts if d.split == "train" for t in d.pieces()), int(size))


def _write_split(
    name: str,
    parts: Sequence[Document],
    tokenizer: Tokenizer,
    directory: Path,
    shard_tokens: int,
    progress: Progress,
) -> Split:
    """Write every document of one split, each followed by end-of-text, into shards."""
    documents = [d for d in parts if d.split == name]
    dtype = token_dtype(tokenizer.n_vocab)
    shards: list[ShardInfo] = []
    buffer, filled = np.empty(shard_tokens, dtype=np.uint32), 0

    def write() -> None:
        path = directory / f"{name}_{len(shards):06d}.bin"
        shards.append(write_shard(path, buffer[:filled], dtype))

    for ids in _encode(documents, tokenizer, progress):
        if len(ids) and ids.max() >= tokenizer.n_vocab:
            raise ValueError(f"{tokenizer.name} gave id {ids.max()}, its vocabulary ends before")
        while len(ids):  # a document may be longer than any number of shards
            take = min(len(ids), shard_tokens - filled)
            buffer[filled : filled + take] = ids[:take]
            filled, ids = filled + take, ids[take:]
            if filled == shard_tokens:
                write()
                filled = 0
    if filled:
        write()
    return Split(
        tokens=sum(s.tokens for s in shards),
        documents=len(documents),
        bytes=sum(d.size for d in documents),
        shards=tuple(shards),
    )


def _encode(
    documents: Sequence[Document], tokenizer: Tokenizer, progress: Progress
) -> Iterator[np.ndarray]:
    """Token ids piece by piece in order, tokenised by all cores with few pieces in flight."""
    eot = np.array([tokenizer.eot_id], dtype=np.uint32)

    def encode(text: str, path: Path) -> tuple[np.ndarray, int]:
        try:
            return tokenizer.encode(text), len(text.encode("utf-8", "replace"))
        except ValueError as error:  # tiktoken's regular expressions end at a million blanks
            raise UserError(f"{tokenizer.name} cannot tokenise {path}: {error}") from error

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        in_flight: deque[Future[tuple[np.ndarray, int]] | None] = deque()

        def finish() -> np.ndarray:
            future = in_flight.popleft()
            if future is None:
                return eot
            ids, size = future.result()
            progress(size)
            return ids

        for document in documents:
            for text in document.pieces():
                in_flight.append(pool.submit(encode, text, document.path))
                while len(in_flight) > 4 * workers:
                    yield finish()
            in_flight.append(None)  # end-of-text closes the document
        while in_flight:
            yield finish()

"""Fetches ready token files from the hub: as many as a run needs, verified, with a manifest.

They arrive in `OUT.preparing`, which becomes `OUT` when all are there and the manifest is written.
A data set without token files is text, and is streamed.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import numpy as np

from gptjax.base.errors import ConfigError
from gptjax.base.terminal import ByteProgress, byte_bars, how_long
from gptjax.config import DataConfig
from gptjax.data.foreign import recognise_all, split_of
from gptjax.data.manifest import Manifest, is_prepared, read_manifest
from gptjax.data.shards import HEADER_BYTES, token_dtype
from gptjax.preparation.adoption import print_splits, write_manifest
from gptjax.preparation.hub.downloading import arrived, download
from gptjax.preparation.hub.repository import (
    RemoteFile,
    Repository,
    find_repository,
    hub_name,
    require_disk,
    source_name,
)
from gptjax.preparation.hub.streaming import stored_commit
from gptjax.preparation.pipeline import prepare_with_progress, settings_mismatch
from gptjax.preparation.sources import find_inputs
from gptjax.preparation.workspace import INPUTS, locked_workspace, preparing, publish, settings_diff
from gptjax.tokenizers.registry import make_tokenizer, tokenizer_identity

FETCHERS = 4  # files fetched at a time


def prepare_from_hub(
    data: DataConfig,
    tokens: int | None,
    read: int | None,
    workers: int | None = None,
    shard_tokens: int | None = None,
    unread: Sequence[str] = (),
) -> None:
    """Make `data.path` from `data.hub` on a terminal; leave a complete data set as it is.

    Fetches as many token files as hold `tokens` training tokens, else the number that a run will
    `read`; None fetches all. `unread` are the given flags that only text needs: `ConfigError`
    refuses them for token files.
    """
    asked = read if tokens is None else tokens
    if existing := existing_manifest(data, asked):
        print(f"{data.path} is complete: {existing.source}")
        return print_splits(existing)
    inputs = preparing(data.path) / INPUTS
    is_text = any(stored_commit(source, inputs) for source in find_inputs(data))
    repository = None if is_text else find_repository(hub_name(data.hub))
    if repository is None or not any(map(_is_shard, repository.files)):
        if tokens is not None:
            raise ConfigError([f"--tokens needs ready token files, but {data.hub} holds text"])
        return prepare_with_progress(data, workers, shard_tokens=shard_tokens)
    if unread:
        raise ConfigError(
            [
                f"{', '.join(unread)} works only with text, but {data.hub} has ready token files, "
                "which are used as they are: leave it out"
            ]
        )
    if data.tokenizer is None:
        raise ConfigError(
            [
                f"{data.hub} has ready token files: name the --tokenizer that made them (gpt2, or "
                "tiktoken:ENCODING, or a tokenizer's JSON file)"
            ]
        )
    itemsize = np.dtype(token_dtype(make_tokenizer(data.tokenizer).n_vocab)).itemsize
    files = select_files(repository.files, asked, itemsize)
    missing = _announce(data, repository, files, asked, itemsize)

    with byte_bars() as bar:
        size = sum(file.size for file in files)
        there = size - missing
        fetched = partial(bar.advance, bar.add_task("fetching", total=size, completed=there))
        hashed = partial(bar.advance, bar.add_task("reading ", total=size))
        manifest = download_all(data, repository, asked, files, fetched, hashed)
    print_splits(manifest)


def existing_manifest(data: DataConfig, tokens: int | None) -> Manifest | None:
    """The finished data set of `data.hub` in `data.path`; None if there is nothing.

    Uses no network. Raises `UserError` if something else is there.
    """
    out = Path(data.path).resolve()
    if not is_prepared(out):
        return None
    manifest = read_manifest(out)
    now = {
        "hub": source_name(data),
        "tokenizer": tokenizer_identity(data.tokenizer or "bytes"),
        "tokens": tokens,
        "val_fraction": data.val_fraction,
    }
    before = {key: value for key, value in manifest.settings.items() if key in now}
    before["hub"] = manifest.source.rpartition(" at ")[0] or manifest.source
    if found := settings_diff(before, {key: now[key] for key in before}):
        raise settings_mismatch(out, found)
    return manifest


def select_files(
    files: Sequence[RemoteFile], tokens: int | None, itemsize: int
) -> list[RemoteFile]:
    """All validation files, and training files in order until they hold `tokens`."""
    shards = sorted(filter(_is_shard, files), key=lambda f: f.name)
    train = [f for f in shards if split_of(f.name) == "train"]
    count = 0
    while count < len(train) and (
        tokens is None or sum(_tokens(f, itemsize) for f in train[:count]) < tokens
    ):
        count += 1
    return train[:count] + [f for f in shards if split_of(f.name) == "val"]


def download_all(
    data: DataConfig,
    repository: Repository,
    tokens: int | None,
    files: Sequence[RemoteFile],
    fetched: ByteProgress,
    hashed: ByteProgress,
) -> Manifest:
    """Fetch and verify `files`, and publish them with a manifest in `data.path`.

    Raises `UserError`; the bytes that have arrived are kept for the next try.
    """
    name, stop = data.tokenizer or "", threading.Event()
    with locked_workspace(data.path) as (out, directory):
        with ThreadPoolExecutor(FETCHERS) as pool:
            waiting = [
                pool.submit(download, repository, file, directory, fetched, stop) for file in files
            ]
            try:
                for done in as_completed(waiting):
                    done.result()
            except BaseException:  # one file's, or Ctrl-C: the others end with their next bytes
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        manifest = write_manifest(
            recognise_all([directory / file.name for file in files]),
            make_tokenizer(name),
            directory,
            source_name(data, repository.commit),
            {"tokenizer": tokenizer_identity(name), "tokens": tokens},
            hashed,
        )
        publish(directory, out, manifest)
    return read_manifest(out)


def _announce(
    data: DataConfig,
    repository: Repository,
    files: Sequence[RemoteFile],
    tokens: int | None,
    itemsize: int,
) -> int:
    """Print the files to fetch and the time that takes; returns the number of missing bytes.

    Raises `UserError` if the disk is too small.
    """
    from rich.filesize import decimal

    directory = preparing(data.path)
    size = sum(file.size for file in files)
    missing = size - sum(arrived(file, directory) for file in files)
    free = require_disk(directory, missing)
    count = sum(_tokens(file, itemsize) for file in files if split_of(file.name) == "train")
    print(
        f"fetching {data.hub} into {data.path}: {len(files):,} of its "
        f"{sum(map(_is_shard, repository.files)):,} token files, about {count:,} tokens to "
        f"train on\n{decimal(size)}, {decimal(missing)} of them missing: {how_long(missing)}; "
        f"the disk has {decimal(free)} free",
        flush=True,
    )
    if tokens is not None and tokens > count:
        print(f"note: a run of {tokens:,} tokens reads these {tokens / max(1, count):.1f} times")
    return missing


def _tokens(file: RemoteFile, itemsize: int) -> int:
    """Tokens in a file, by its size alone; slightly too few if it has no header of llm.c's."""
    return max(0, file.size - HEADER_BYTES) // itemsize


def _is_shard(file: RemoteFile) -> bool:
    return file.name.endswith((".bin", ".npy")) and split_of(file.name) is not None

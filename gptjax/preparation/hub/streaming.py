"""Streams a data set of the hub, and stores it in parts that survive a kill.

`datasets` reads the files over the network one after the other. Only the text is kept, in Parquet
files of about 128 MiB of text each. Each part is stored with the commit and the place in the stream
where it ends. So a killed stream continues after its last whole part, from the files of the same
commit, whatever the hub has by then.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gptjax.base.errors import UserError
from gptjax.base.files import unique_name, write_atomically
from gptjax.base.terminal import how_long
from gptjax.config import DataConfig
from gptjax.config.names import HubName
from gptjax.preparation.hub.repository import find_repository, hub_errors, hub_name, require_disk
from gptjax.preparation.recognition import choose_field
from gptjax.preparation.sources import Input, Progress, silent

STREAM_PART_BYTES = 2**27  # bytes of text that a kill can lose at most
GROUP_BYTES = 2**23  # bytes of text in a row group, and so in memory
STATE = "stream.json"
PLAIN = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".txt")
FILES_ASKED = 500  # paths in one request to the hub


@dataclass
class _Stored:
    """The progress of a stream: the parts written, and where the next one begins."""

    commit: str
    parts: int = 0
    place: dict[str, Any] | None = None
    """State with which `datasets` continues; None at the beginning."""
    is_whole: bool = False


def store_stream(source: Input, directory: Path, progress: Progress = silent) -> list[Input]:
    """Stream a data set of the hub to Parquet files in `directory`, unless they exist."""
    spool = _spool(source, directory)
    stored = _read(spool)
    if stored is None or not stored.is_whole:
        spool.mkdir(parents=True, exist_ok=True)
        name = hub_name(str(source.path))
        stored = stored or _Stored(find_repository(name).commit)
        with hub_errors(name.repository):
            _stream(source, stored, spool, progress)
    return [
        replace(source, path=p, kind="parquet", field="text", name=f"{source.path} part {n}")
        for n, p in enumerate(_part(spool, stored.commit, n) for n in range(stored.parts))
    ]


def stored_commit(source: Input, directory: Path) -> str | None:
    """The commit of a stream that has begun; None otherwise."""
    stored = _read(_spool(source, directory))
    return stored.commit if stored else None


def announce(data: DataConfig, source: Input, directory: Path) -> None:
    """Print the size of a stream, the time to read it and the disk that it needs.

    Raises `UserError` if the disk is too small. Prints and asks nothing if all of it is stored.
    """
    from rich.filesize import decimal

    stored = _read(_spool(source, directory))
    if stored is not None and stored.is_whole:
        return
    name = hub_name(data.hub)
    with hub_errors(name.repository):
        files = _files(name, stored.commit if stored else find_repository(name).commit)
    total, needed = sum(files.values()), _disk(files, data.tokenizer or "bytes")
    free = require_disk(Path(data.path).absolute(), 0 if stored else needed)
    print(
        f"{data.hub}: {len(files):,} files of {decimal(total)} to read: {how_long(total)}; needs "
        f"about {decimal(needed)} of the {decimal(free)} free on the disk",
        flush=True,
    )
    if stored:
        print(f"continuing after part {stored.parts}, at commit {stored.commit}", flush=True)


def _disk(files: dict[str, int], tokenizer: str) -> int:
    """An estimate of the bytes of disk for the parts and the tokens, which exist twice.

    It assumes that compression leaves 0.4 of the text, and that a byte of text makes half a byte of
    tokens, or two bytes if every byte is a token.
    """
    text = sum(n if name.endswith(PLAIN) else n / 0.4 for name, n in files.items())
    return int(text * (0.4 + 2 * (2 if tokenizer in ("bytes", "chars") else 0.5)))


def _stream(source: Input, stored: _Stored, spool: Path, progress: Progress) -> None:
    """Write the missing parts, and after each one the place where it ends."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for left in spool.glob(".*.tmp"):  # left by a kill
        left.unlink()
    data = _open(source, stored.commit)
    if stored.place is not None:
        data.load_state_dict(stored.place)
    schema = pa.schema([("text", pa.string())])
    field = next(iter(data.features)) if data.features else source.field or "text"
    groups = _groups(replace(source, field=field), data)
    while not stored.is_whole:
        target = _part(spool, stored.commit, stored.parts)
        temporary, size = unique_name(target), 0
        with pq.ParquetWriter(temporary, schema, compression="zstd") as file:
            for texts in groups:
                file.write_table(pa.table([texts], schema=schema))
                size += (read := sum(len(t.encode()) for t in texts if t is not None))
                progress("streaming", read, 0)
                if size >= STREAM_PART_BYTES:
                    break
            else:
                stored.is_whole = True
        if stored.is_whole and not size and stored.parts:
            temporary.unlink()
        else:
            temporary.rename(target)
            stored.parts += 1
        stored.place = data.state_dict()
        write_atomically(spool / STATE, json.dumps(vars(stored)).encode())


def _groups(source: Input, data: Any) -> Iterator[list[str | None]]:
    """The texts of a stream, one row group at a time; None stands for a value that is not text."""
    texts: list[str | None] = []
    size = 0
    for record in data:
        text = record[choose_field(str(source.path), source.field, dict.fromkeys(record, True))]
        texts.append(text if isinstance(text, str) else None)
        size += len(texts[-1] or "")
        if size >= GROUP_BYTES or len(texts) >= GROUP_BYTES // 64:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def _open(source: Input, commit: str) -> Any:
    """The stream of the records' texts from its beginning."""
    name = hub_name(str(source.path))
    data = _builder(name, commit).as_streaming_dataset(split=name.split)
    if data.features is None:
        return data
    types = ("string", "large_string")
    fields = {n: getattr(kind, "dtype", None) in types for n, kind in data.features.items()}
    return data.select_columns([choose_field(str(source.path), source.field, fields)])


def stream_records(name: HubName) -> Iterator[dict[str, Any]]:
    """All fields of the records of a data set, streamed from the hub; nothing is stored.

    Raises `UserError` if the hub or the data set cannot be read.
    """
    with hub_errors(name.repository):
        commit = find_repository(name).commit
        yield from _builder(name, commit).as_streaming_dataset(split=name.split)


@lru_cache(1)
def _builder(name: HubName, commit: str) -> Any:
    """The builder of `datasets` for the files at a commit; it has read nothing yet."""
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset_builder(name.repository, name.subset, revision=commit)


def _files(name: HubName, commit: str) -> dict[str, int]:
    """Bytes of every file of the split."""
    from huggingface_hub import HfApi

    splits = _builder(name, commit).config.data_files or {}
    if name.split not in splits:
        there = ", ".join(map(str, splits))
        raise UserError(f"{name.repository} has no split {name.split}; it has {there}")
    paths = [path.partition(f"@{commit}/")[2] for path in splits[name.split]]
    paths = [path for path in paths if path]  # a set may name another repository's files
    found = []
    for start in range(0, len(paths), FILES_ASKED):
        asked = paths[start : start + FILES_ASKED]
        found += HfApi().get_paths_info(
            name.repository, asked, revision=commit, repo_type="dataset"
        )
    return {file.path: file.size for file in found}


def _spool(source: Input, directory: Path) -> Path:
    """The folder of a stream: another data set, or field, is another stream."""
    key = hashlib.blake2b(f"{source.path} {source.field or 'text'}".encode(), digest_size=8)
    return directory / f"hub-{key.hexdigest()}"


def _part(spool: Path, commit: str, number: int) -> Path:
    """A name that no part of another stream has, because finished work is recognised by names."""
    return spool / f"{spool.name}-{commit[:12]}-{number:05d}.parquet"


def _read(spool: Path) -> _Stored | None:
    """The progress of a stream; None if it has not begun or a part is missing."""
    try:
        stored = _Stored(**json.loads((spool / STATE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    parts = [_part(spool, stored.commit, n) for n in range(stored.parts)]
    return stored if all(part.is_file() for part in parts) else None

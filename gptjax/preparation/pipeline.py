"""Turns text into a prepared data set: look, tokenise, write shards, and the manifest last.

All of it happens in `OUT.preparing`, which is renamed to `OUT` when it is complete: a killed
preparation leaves nothing that could be mistaken for data. The next try, with any number of
workers, uses the finished units in it. The partitions of an array job fill the same directory from
several machines.
"""

import shlex
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from gptjax.base.errors import ConfigError, UserError
from gptjax.config import Config, DataConfig
from gptjax.config.names import how_to_prepare_for
from gptjax.config.presets import load_config
from gptjax.data.manifest import SPLITS, Manifest, Split, is_prepared, read_manifest, read_tokenizer
from gptjax.data.shards import SHARD_TOKENS, token_dtype, write_shards
from gptjax.preparation.oddities import Oddities, describe_oddities
from gptjax.preparation.options import needs_text
from gptjax.preparation.progress import progress_bars
from gptjax.preparation.scanning import Scan
from gptjax.preparation.sources import HUB, STDIN, Input, Progress, find_inputs, silent
from gptjax.preparation.tokenising import SplitCounts, UnitTokens
from gptjax.preparation.units import Partition
from gptjax.preparation.workspace import (
    INPUTS,
    Workspace,
    open_workspace,
    preparing,
    publish,
    settings_diff,
)
from gptjax.tokenizers.registry import fingerprint, tokenizer_identity

NAMES_SHOWN = 100  # names of sources in the manifest


def prepare_shards(
    data: DataConfig,
    inputs: Sequence[Input],
    progress: Progress = silent,
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    merge: bool = False,
    oddities: Oddities | None = None,
) -> Manifest:
    """Prepare `inputs` by the settings in `data`, into `data.path`; returns the manifest.

    `oddities` holds the findings of `find_inputs`; those of the text are added.

    A finished data set of the same settings is returned as it is. Finished work of a killed
    preparation or of partitions is used; with `merge` all of it must exist. Raises
    `UserError` if `data.path` holds anything else.
    """
    name = data.tokenizer or "bytes"
    odd = Oddities() if oddities is None else oddities
    with open_workspace(data, inputs, workers, merge, progress=progress) as work:
        odd.merge(work.oddities)
        if is_prepared(work.out):
            found = work.scan(progress)
            existing = _require_same(work.out, _settings(data, found, shard_tokens))
            shutil.rmtree(work.directory)
            odd.merge(found.oddities)
            return existing
        if merge:
            work.require_every_unit()
        work.choose_split(progress, surely=needs_text(name))
        tokenizer = work.make_tokenizer(name)
        dtype = token_dtype(tokenizer.n_vocab)
        found, made = _tokenise(work, progress)
        if (ends := found.holds_out_ends(data.val_fraction)) != work.worker.ends:
            work.worker.ends = ends
            found, made = _tokenise(work, progress)
        counts = {"train": [m.train for m in made], "val": [m.val for m in made]}
        work.require_unchanged()
        odd.merge(found.oddities)
        manifest = Manifest(
            directory=work.directory,
            source=_name(data, inputs, work.directory / INPUTS),
            tokenizer=tokenizer.name,
            n_vocab=tokenizer.n_vocab,
            tokenizer_fingerprint=fingerprint(tokenizer),
            dtype=dtype,
            splits={
                split: _write_split(work, split, counts[split], dtype, shard_tokens)
                for split in SPLITS
            },
            settings=_settings(data, found, shard_tokens),
            notes={kind: n for kind, n in sorted(odd.counts.items()) if n},
        )
        manifest.write()
        publish(work.directory, work.out, manifest)
    return read_manifest(work.out)


def _tokenise(work: Workspace, progress: Progress) -> tuple[Scan, list[UnitTokens]]:
    """Tokenise all units; returns the scan of the text, and the counts of each unit."""
    total, units = Scan(), []
    for found, made in work.tokenise(range(len(work.units))):
        total.merge(found)
        units.append(made)
        total.oddities.counts["cut_blanks"] += made.cut_blanks
        total.oddities.counts["cut_tokens"] += made.cut_tokens
        progress("tokenising", made.bytes, made.tokens)
    return total, units


def _write_split(
    work: Workspace, split: str, counts: Sequence[SplitCounts], dtype: str, shard_tokens: int
) -> Split:
    """Write the tokens of all units as the shards of a split; `counts` has one entry a unit."""
    parts = chain.from_iterable(
        work.worker.tokens(number, split, expected, dtype) for number, expected in enumerate(counts)
    )
    total = sum(c.tokens for c in counts)
    shards = write_shards(work.directory, split, parts, total, dtype, shard_tokens)
    return Split(total, sum(c.documents for c in counts), sum(c.bytes for c in counts), shards)


def prepare_partition(
    data: DataConfig,
    inputs: Sequence[Input],
    partition: Partition,
    progress: Progress = silent,
    workers: int | None = None,
) -> int:
    """Tokenise one partition's units for `prepare_shards` to merge; returns their tokens.

    Does nothing if they are merged already.
    """
    if needs_text(data.tokenizer or "bytes"):
        raise ConfigError(
            [
                f"--partition does not work with --tokenizer {data.tokenizer}, which needs all "
                "the text"
            ]
        )
    if any(d.is_stream for d in inputs):
        raise ConfigError(["--partition does not work with standard input or --hub: give files"])
    if is_prepared(out := Path(data.path)):  # a job that was queued again after the merge
        if found := settings_diff(read_manifest(out).settings, _choices(data)):
            raise settings_mismatch(out, found)
        return 0
    with open_workspace(data, inputs, workers, shared=True) as work:
        numbers = [n for n in range(len(work.units)) if partition.has(n)]
        work.choose_split(progress)
        work.make_tokenizer(data.tokenizer or "bytes")
        total = 0
        for _, made in work.tokenise(numbers):
            progress("tokenising", made.bytes, made.tokens)
            total += made.tokens
        done = f"partition-{partition.index}-of-{partition.count}.done"
        (work.directory / done).touch()
    return total


def prepare_with_progress(
    data: DataConfig,
    workers: int | None = None,
    partition: Partition | None = None,
    merge: bool = False,
    shard_tokens: int | None = None,
) -> None:
    """Prepare on a terminal: show progress, then notes about odd text and the totals."""
    oddities = Oddities()
    inputs = find_inputs(data, oddities)
    total = sum(d.size for d in inputs if not d.is_stream)
    share = f", partition {partition.index}/{partition.count}" if partition else ""
    what = data.hub or f"{len(inputs):,} files, {total / 1e6:,.1f} MB"
    print(
        f"preparing {data.path}: {what}, tokenizer {data.tokenizer or 'bytes'}{share}", flush=True
    )
    if data.hub is not None:
        from gptjax.preparation.hub.streaming import announce

        announce(data, inputs[0], preparing(data.path) / INPUTS)
    with progress_bars(total, partition.count if partition else 1) as progress:
        if partition is not None:
            tokens = prepare_partition(data, inputs, partition, progress, workers)
        else:
            size = shard_tokens or SHARD_TOKENS
            manifest = prepare_shards(data, inputs, progress, size, workers, merge, oddities)
    if partition is not None and is_prepared(Path(data.path)):
        print(f"{data.path} is complete: there is nothing left to do")
        return
    if partition is not None:
        print(f"{tokens:,} tokens; when every partition is done, run the command with --merge")
        return
    for note in describe_oddities(manifest.notes, oddities.first):
        print(f"note: {note}")
    for name, split in manifest.splits.items():
        per_token = split.bytes / max(1, split.tokens)
        print(
            f"{name:5}  {split.tokens:,} tokens in {len(split.shards)} shards from "
            f"{split.documents:,} documents, {per_token:.2f} bytes per token"
        )


def require_own_text(config_name: str, config: Config) -> None:
    """Raise `UserError` with the command that prepares the data, unless a run can do it itself."""
    data, model = config.data, config.train.init_from
    if model is not None and data.tokenizer is None:
        raise UserError(
            f"there is no prepared data in data.path {data.path}: {how_to_prepare_for(model, None)}"
        )
    if data.source is None or data.hub:
        how = how_to_prepare(config_name, config, load_config(config_name).data)
        raise UserError(f"there is no prepared data in data.path {data.path}: run `{how}` first")


def how_to_prepare(config_name: str, config: Config, own: DataConfig) -> str:
    """The command that prepares a config's data, for messages; `own` is the file's own data."""
    data, command = config.data, f"python -m gptjax.prepare --config {shlex.quote(config_name)}"
    out = f" --out {shlex.quote(data.path)}"
    if data.tokenizer not in (None, own.tokenizer):
        command += f" --tokenizer {shlex.quote(data.tokenizer)}"
    if data.hub is not None:
        hub = "" if data.hub == own.hub else f" --hub {shlex.quote(data.hub)}"
        return command + hub + ("" if data.path == own.path else out)
    if data.source is None:
        command += f" --input {shlex.join(data.inputs) if data.inputs else 'FILE...'}"
    return command + out


def _settings(data: DataConfig, found: Scan, shard_tokens: int) -> dict[str, Any]:
    """The choices that decide every token written."""
    return {
        "bytes": found.bytes,
        "content": found.digest.text,
        **_choices(data),
        "shard_tokens": shard_tokens,
    }


def _choices(data: DataConfig) -> dict[str, Any]:
    """The choices that are known before any text is read."""
    return {
        "tokenizer": tokenizer_identity(data.tokenizer or "bytes"),
        "val_fraction": data.val_fraction,
    }


def _name(data: DataConfig, inputs: Sequence[Input], directory: Path) -> str:
    """The name of the source in the manifest."""
    if inputs[0].kind == HUB:
        from gptjax.preparation.hub.repository import source_name
        from gptjax.preparation.hub.streaming import stored_commit

        return source_name(data, stored_commit(inputs[0], directory))
    if data.source and not data.inputs:
        return data.source
    names = ["standard input" if str(d.path) == STDIN else d.path.name for d in inputs]
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _require_same(out: Path, settings: dict[str, Any]) -> Manifest:
    """The data set already in `out`; raises `UserError` if it was made with other settings."""
    manifest = read_manifest(out)
    read_tokenizer(manifest)  # raises if it is missing or another
    if manifest.settings == settings:
        return manifest
    raise settings_mismatch(out, settings_diff(manifest.settings, settings))


def settings_mismatch(out: Path, found: str) -> UserError:
    """The error about a data set whose settings differ as `found` says."""
    return UserError(
        f"{out} holds data prepared with other settings ({found}): choose another --out, or move "
        "that directory away"
    )

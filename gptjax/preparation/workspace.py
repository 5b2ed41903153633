"""The directory of a preparation in progress: its units, finished work, its plan and its lock.

`OUT.preparing` belongs to one plan: everything that decides the content of a unit. Work of the same
plan is used, work of another is deleted. One process works there at a time, or any number of
partitions.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from gptjax.base.errors import ConfigError, UserError
from gptjax.base.files import locked, reach_disk, write_atomically
from gptjax.config import DataConfig
from gptjax.data.manifest import MANIFEST, SPLITS, TOKENIZER, Manifest, is_prepared
from gptjax.preparation.oddities import Oddities, describe_oddities
from gptjax.preparation.options import unread_fields
from gptjax.preparation.pool import cores, ordered_map, worker_pool
from gptjax.preparation.readers import passages_of
from gptjax.preparation.recognition import recognise_input
from gptjax.preparation.scanning import Scan, look
from gptjax.preparation.sources import HUB, Input, Progress, silent, unpack
from gptjax.preparation.tokenising import UNITS, UnitTokeniser, UnitTokens
from gptjax.preparation.units import Unit, find_units, inputs_digest
from gptjax.preparation.walking import PREPARING
from gptjax.tokenizers.bpe import train_bpe
from gptjax.tokenizers.plain import Tokenizer, collect_characters
from gptjax.tokenizers.registry import make_tokenizer, tokenizer_from_json, tokenizer_identity

PLAN, INPUTS = "plan.json", "inputs"


@dataclass
class Workspace:
    """A preparation in progress: its directory, its units and its workers."""

    out: Path
    directory: Path
    units: list[Unit]
    worker: UnitTokeniser
    pool: Executor
    workers: int
    inputs: list[Input]
    oddities: Oddities
    """The oddities of the files, before any was read."""

    def scan(self, progress: Progress) -> Scan:
        """Scan all units, or recall stored scans."""
        total = Scan()
        for found in ordered_map(self.pool, self.workers, self.worker.scan, enumerate(self.units)):
            total.merge(found)
            progress("reading", found.bytes, 0)
        return total

    def choose_split(self, progress: Progress, surely: bool = False) -> None:
        """Choose how validation is held out.

        All the text decides that. Before all of it is known, this guesses from its beginning,
        unless the answer must `surely` be right. Raises `UserError` if there is no document.
        """
        numbers = range(len(self.units))
        if all(self.worker.scanned(n) is not None for n in numbers):
            found, is_all = self.scan(silent), True
        else:
            found, is_all = look(self.units, self.worker.val_fraction)
        if surely and not is_all:
            found, is_all = self.scan(progress), True
        if is_all and not found.documents:
            why = "; ".join(describe_oddities(found.oddities.counts, found.oddities.first))
            raise UserError(f"there is no text in the input: {why or 'no document at all'}")
        self.worker.ends = is_all and found.holds_out_ends(self.worker.val_fraction)

    def tokenise(self, numbers: Sequence[int]) -> Iterator[tuple[Scan, UnitTokens]]:
        """Tokenise units; yield each one's scan and counts, in order."""
        work = ((n, self.units[n]) for n in numbers)
        return ordered_map(self.pool, self.workers, self.worker.tokenise, work)

    def make_tokenizer(self, name: str) -> Tokenizer:
        """The tokenizer, stored beside the units: `bpe:N` of training text, `chars` of all text."""
        if self.worker.tokenizer is not None:
            return self.worker.tokenizer
        path = self.directory / TOKENIZER
        kind, _, size = name.partition(":")
        if path.exists():
            tokenizer = tokenizer_from_json(path.read_text(), str(path))
        elif name == "chars":
            tokenizer = collect_characters(self._texts(SPLITS))
        elif kind == "bpe":
            tokenizer = train_bpe(self._texts(("train",)), int(size))
        else:
            tokenizer = make_tokenizer(name)
        if not path.exists():
            write_atomically(path, tokenizer.to_json().encode())
        self.worker.tokenizer = tokenizer
        return tokenizer

    def _texts(self, splits: Sequence[str]) -> Iterator[str]:
        val_fraction, ends = self.worker.val_fraction, self.worker.ends
        for passage in passages_of(chain.from_iterable(self.units), Oddities()):
            for split, start, stop, _ in passage.split(val_fraction, ends):
                if split in splits:
                    for part in passage.document.parts(start, stop):
                        yield part.decode("utf-8", "replace")

    def require_unchanged(self) -> None:
        """Raise `UserError` if the text has changed since the start."""
        plan = json.loads((self.directory / PLAN).read_text())
        if inputs_digest(self.inputs) != plan["names and times"]:
            raise UserError(
                "the text was changed while it was being prepared: leave it unchanged, and run "
                "the same command again"
            )

    def require_every_unit(self) -> None:
        """Raise a `UserError` that names the unfinished partitions."""
        missing = [n for n in range(len(self.units)) if not self.worker.is_there(n)]
        if not missing:
            return
        done = {tuple(p.stem.split("-")[1::2]) for p in self.directory.glob("partition-*.done")}
        counts = {int(count) for _, count in done}
        left = [
            f"{i}/{n}" for n in sorted(counts) for i in range(n) if (str(i), str(n)) not in done
        ]
        raise UserError(
            f"{len(missing):,} of {len(self.units):,} units are not tokenised yet"
            f"{'; not finished: --partition ' + ', '.join(left) if left else ''}. Run the "
            "missing partitions, or leave out --merge to do the rest here"
        )


def publish(directory: Path, out: Path, manifest: Manifest) -> None:
    """Turn the finished `directory` into the data set: the manifest's files and nothing else."""
    shards = {shard.name for split in manifest.splits.values() for shard in split.shards}
    reach_disk(*(directory / name for name in shards), directory)  # before what they came from goes
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in shards | {MANIFEST, TOKENIZER}:
            path.unlink()
    if out.exists():
        out.rmdir()
    directory.rename(out)


@contextmanager
def open_workspace(
    data: DataConfig,
    given: Sequence[Input],
    workers: int | None,
    merge: bool = False,
    shared: bool = False,
    progress: Progress = silent,
) -> Iterator[Workspace]:
    """Open the directory where `data` is made, for one process or `shared` by partitions."""
    workers = workers or cores()
    with locked_workspace(data.path, shared) as (out, directory):
        try:
            oddities = Oddities()
            inputs = store_plain_files(given, directory / INPUTS, oddities, progress)
            problems = unread_fields(data, {source.kind for source in inputs})
            if problems and data.input_format == "auto":  # otherwise checked at the start
                raise ConfigError(problems)
            _keep_or_clear(directory, _plan(data, inputs), strict=merge or shared)
            worker = UnitTokeniser(directory, data.val_fraction)
            with worker_pool(workers, sum(i.size for i in inputs)) as pool:
                units = find_units(inputs)
                yield Workspace(out, directory, units, worker, pool, workers, inputs, oddities)
        except UserError:
            if not (merge or shared or _is_begun(directory)):
                shutil.rmtree(directory, ignore_errors=True)
            raise


def store_plain_files(
    inputs: Sequence[Input], directory: Path, oddities: Oddities, progress: Progress = silent
) -> list[Input]:
    """The inputs as plain files of known formats; stored or unpacked ones lie in `directory`."""
    plain: list[Input] = []
    for source in inputs:
        if source.kind == HUB:
            from gptjax.preparation.hub.streaming import store_stream

            plain += store_stream(source, directory, progress)
        else:
            plain.append(recognise_input(unpack(source, directory), oddities))
    return plain


def _is_begun(directory: Path) -> bool:
    """Whether there is work worth keeping: a finished unit, or a stored part of a stream."""
    units, parts = (directory / UNITS).glob("*.json"), (directory / INPUTS).glob("*/*.parquet")
    return any(units) or any(parts)


def preparing(path: str) -> Path:
    """The directory where the data set `path` is made."""
    out = Path(path).resolve()
    return out.with_name(out.name + PREPARING)


@contextmanager
def locked_workspace(path: str, shared: bool = False) -> Iterator[tuple[Path, Path]]:
    """A data set's directory and the one where it is made, locked against other processes.

    Raises `UserError` if `path` is something else, in use, or cannot be written.
    """
    out = Path(path).resolve()
    if out.exists() and not is_prepared(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} exists but is not a prepared data set (no {MANIFEST}): choose another --out"
        )
    directory, lock = preparing(path), out.with_name(f".{out.name}.lock")  # hidden from any walk
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, shared) as is_free:
            if not is_free:
                raise UserError(f"another process is preparing {path}: wait for it")
            directory.mkdir(exist_ok=True)
            try:
                yield out, directory
            finally:
                if not shared:
                    with suppress(OSError):
                        directory.rmdir()  # if it is empty
                    lock.unlink(missing_ok=True)  # only an exclusive holder may: see `locked`
    except BrokenPipeError:  # the terminal's
        raise
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; finished work is kept in "
            f"{directory.name}, and the same command continues from there"
        ) from error


def _keep_or_clear(directory: Path, plan: dict[str, Any], strict: bool) -> None:
    """Keep work of the same plan; delete other work, or refuse it if `strict`."""
    path = directory / PLAN
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = None
    if before != plan:
        if strict and before is not None:
            raise UserError(
                f"{directory} holds work with other settings ({settings_diff(before, plan)}): give "
                "the same flags to every partition and to --merge, or move that directory away"
            )
        for entry in directory.iterdir():
            if not strict and entry.name != INPUTS:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        write_atomically(path, json.dumps(plan).encode())
    (directory / UNITS).mkdir(exist_ok=True)


def _plan(data: DataConfig, inputs: Sequence[Input]) -> dict[str, Any]:
    """Everything that decides the content of a unit."""
    return {
        "files": len(inputs),
        "bytes": sum(i.size for i in inputs),
        "names and times": inputs_digest(inputs),
        "tokenizer": tokenizer_identity(data.tokenizer or "bytes"),
        "val_fraction": data.val_fraction,
        "text_field": data.text_field or "text",
        "doc_separator": data.doc_separator,
    }


def settings_diff(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The differences between two tables of settings, in words."""
    return "; ".join(
        f"{key} was {before.get(key)!r}, now {value!r}"
        for key, value in now.items()
        if before.get(key) != value
    )

"""Turns one unit of text into files of tokens, the same from any worker; they survive a kill.

`units/N.train` and `units/N.val` hold bare tokens, `units/N.scan` describes their text, and
`units/N.json` their counts. It is written last: a unit without it is not finished.
"""

import json
import re
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.files import unique_name
from gptjax.data.manifest import SPLITS, TOKENIZER
from gptjax.data.shards import token_dtype
from gptjax.preparation.readers import passages_of
from gptjax.preparation.scanning import Digest, Scan, read_parts, scan
from gptjax.preparation.units import Unit
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import tokenizer_from_json

UNITS = "units"
WRITTEN_TOKENS = 2**18
NEAR = 256  # characters around a cut: enough to tell whether a token spans it
# tiktoken's regular expressions fail at a million blanks in a row; runs of these are encoded alone
_BLANKS = re.compile(r"\s{65536}")


@dataclass(frozen=True)
class SplitCounts:
    """One split of a unit: its counts, and the checksum of its file."""

    tokens: int
    documents: int
    bytes: int
    crc32: int


@dataclass(frozen=True)
class UnitTokens:
    """The contents of `units/N.json` for a finished unit."""

    ends: bool
    """Whether the ends of documents are held out for validation."""
    cut_blanks: int
    """Parts with more blanks in a row than the tokenizer can take at once."""
    cut_tokens: int
    """Places where a document was cut inside a token."""
    train: SplitCounts
    val: SplitCounts

    @property
    def tokens(self) -> int:
        """Tokens of both splits."""
        return self.train.tokens + self.val.tokens

    @property
    def bytes(self) -> int:
        """Text of both splits, in bytes."""
        return self.train.bytes + self.val.bytes


class UnitTokeniser:
    """Scans and tokenises units, in this process or (pickled) in another."""

    def __init__(self, directory: Path, val_fraction: float, tokenizer: Tokenizer | None = None):
        self.directory, self.val_fraction = directory, val_fraction
        self.ends = False
        self.tokenizer = tokenizer

    def __getstate__(self) -> dict:
        return {**self.__dict__, "tokenizer": None}  # the other process reads it from the directory

    def scan(self, number: int, unit: Unit) -> Scan:
        """Scan a unit, or return the stored result."""
        if (found := self.scanned(number)) is None:
            found = scan(unit, self.val_fraction)
            self._publish(self._path(number, "scan"), _scan_to_json(found))
        return found

    def tokenise(self, number: int, unit: Unit) -> tuple[Scan, UnitTokens]:
        """Write a unit's tokens, unless they exist; return its scan and its counts."""
        found, made = self.scanned(number), self.finished(number)
        if found is not None and made is not None:
            return found, made
        found = Scan()
        tokenizer = self.tokenizer or _tokenizer_at(self.directory / TOKENIZER)
        cut = cut_tokens = 0
        eot = np.array([tokenizer.eot_id], np.uint32)
        paths = {split: unique_name(self._path(number, split)) for split in SPLITS}
        with paths["train"].open("wb") as train, paths["val"].open("wb") as val:
            writers = {"train": _SplitWriter(train, tokenizer), "val": _SplitWriter(val, tokenizer)}
            for passage in passages_of(unit, found.oddities):
                found.count(passage, self.val_fraction)
                document = passage.document
                stretches = list(passage.split(self.val_fraction, self.ends))
                whole = read_parts(passage, found)
                if len(stretches) > 1:  # each then has its own parts
                    deque(whole, maxlen=0)
                for split, start, stop, ends in stretches:
                    parts = whole if len(stretches) == 1 else document.parts(start, stop)
                    # another unit has the text before the passage; a cut before validation is meant
                    near = min(NEAR, start) if start == passage.start else 0
                    before = document.read(start - near, near).decode("utf-8", "ignore")
                    for part in parts:
                        text = part.decode("utf-8", "replace")
                        cut_tokens += are_joined(tokenizer, before[-NEAR:], text[:NEAR])
                        before = text
                        for ids in encode(tokenizer, text, document.id):
                            cut += ids is None
                            if ids is not None:
                                writers[split].add(ids)
                    writers[split].bytes += stop - start
                    if ends:
                        writers[split].add(eot)
                        writers[split].documents += 1
            splits = [writers[split].finish() for split in SPLITS]
        made = UnitTokens(self.ends, cut, cut_tokens, *splits)
        for split, path in paths.items():
            path.replace(self._path(number, split))
        self._publish(self._path(number, "scan"), _scan_to_json(found))
        self._publish(self._path(number, "json"), json.dumps(asdict(made)))
        return found, made

    def scanned(self, number: int) -> Scan | None:
        """The stored scan of a unit; None if it was not read to its end."""
        try:
            return _scan_from_json(self._path(number, "scan").read_text())
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def is_there(self, number: int) -> bool:
        """Whether a unit is finished, with either kind of split."""
        return self._path(number, "json").exists()

    def finished(self, number: int) -> UnitTokens | None:
        """The counts of a unit; None unless it is finished and has the wanted kind of split."""
        try:
            table = json.loads(self._path(number, "json").read_text())
            train, val = (SplitCounts(**table.pop(split)) for split in SPLITS)
            made = UnitTokens(**table, train=train, val=val)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return made if made.ends == self.ends else None

    def tokens(
        self, number: int, split: str, expected: SplitCounts, dtype: str
    ) -> Iterator[np.ndarray]:
        """A finished unit's tokens, a few million at a time; raises `UserError` if damaged."""
        checksum = 0
        with self._path(number, split).open("rb") as file:
            while raw := file.read(2**22):
                checksum = zlib.crc32(raw, checksum)
                yield np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"))
        if checksum != expected.crc32:
            self._path(number, "json").unlink()
            raise UserError(
                f"{self._path(number, split)} is damaged: run the same command again, which "
                "makes only this part again"
            )

    def _publish(self, path: Path, text: str) -> None:
        """Write a small file whole or not at all; one that a crash loses is made again."""
        temporary = unique_name(path)
        temporary.write_text(text)
        temporary.replace(path)

    def _path(self, number: int, suffix: str) -> Path:
        return self.directory / UNITS / f"{number:07d}.{suffix}"


class _SplitWriter:
    """Writes one split of a unit to a file, many small documents at a time."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer):
        self._file, self._tokenizer = file, tokenizer
        self._dtype = np.dtype(token_dtype(tokenizer.n_vocab)).newbyteorder("<")
        self._waiting: list[np.ndarray] = []
        self._tokens = self._held = self._crc32 = 0
        self.documents = self.bytes = 0

    def add(self, ids: np.ndarray) -> None:
        """Append tokens."""
        self._waiting.append(ids)
        self._held += len(ids)
        if self._held >= WRITTEN_TOKENS:
            self._flush()

    def finish(self) -> SplitCounts:
        """Write the tokens that wait, and return all counts."""
        self._flush()
        return SplitCounts(self._tokens, self.documents, self.bytes, self._crc32)

    def _flush(self) -> None:
        if not self._held:
            return
        ids = np.concatenate(self._waiting)
        if ids.max() >= self._tokenizer.n_vocab:
            top = f"{self._tokenizer.name} gave id {ids.max()}"
            raise ValueError(f"{top}, its vocabulary ends before")
        raw = ids.astype(self._dtype, copy=False).tobytes()
        self._file.write(raw)
        self._tokens, self._crc32 = self._tokens + len(ids), zlib.crc32(raw, self._crc32)
        self._waiting, self._held = [], 0


def encode(tokenizer: Tokenizer, text: str, where: str) -> Iterator[np.ndarray | None]:
    """Ids of a text in order; None first if runs of blanks had to be cut."""
    try:
        yield tokenizer.encode(text)
        return
    except ValueError as error:
        matches = list(_BLANKS.finditer(text))
        if not matches:
            raise UserError(f"{tokenizer.name} cannot tokenise {where}: {error}") from error
    yield None
    at = 0
    for match in matches:
        yield tokenizer.encode(text[at : match.start()])
        yield tokenizer.encode(match[0])
        at = match.end()
    yield tokenizer.encode(text[at:])


def are_joined(tokenizer: Tokenizer, before: str, after: str) -> bool:
    """Whether two texts have different tokens together and apart."""
    if not before:
        return False
    apart = [*tokenizer.encode(before), *tokenizer.encode(after)]
    return apart != [*tokenizer.encode(before + after)]


@cache
def _tokenizer_at(path: Path) -> Tokenizer:
    return tokenizer_from_json(path.read_text(), str(path))


def _scan_to_json(found: Scan) -> str:
    oddities = {"counts": dict(found.oddities.counts), "first": found.oddities.first}
    table = {**vars(found), "digest": asdict(found.digest), "oddities": oddities}
    return json.dumps(table)


def _scan_from_json(text: str) -> Scan:
    table = json.loads(text)
    oddities = table.pop("oddities")
    found = Scan(**{**table, "digest": Digest(**table["digest"])})
    found.oddities.counts.update(oddities["counts"])
    found.oddities.first.update(oddities["first"])
    return found

"""The work of a preparation, cut into units that any worker can do, in any order, on any machine.

Units depend only on the files, never on the number of workers. So an array job with
`--partition i/n` and a single machine cut the same corpus the same way.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptjax.base.errors import ConfigError
from gptjax.preparation.documents import Document
from gptjax.preparation.readers import READ_BYTES, Span, parquet_file, separator_ends
from gptjax.preparation.sources import Input

SMALLEST_UNIT = 2**20
LARGEST_UNIT = 2**25
SPANS = 4096  # most spans in a unit
USUAL_UNITS = 256  # enough to keep every core of a large machine busy to the end
Unit = tuple[Span, ...]


@dataclass(frozen=True)
class Partition:
    """One of `count` equal shares of the units; every `count`-th, beginning at `index`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Partition":
        """Read `i/n`, with i from 0 to n - 1; raises `ConfigError` for anything else."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ConfigError([f"--partition must be i/n with i from 0 to n - 1, not {text!r}"])
        return cls(int(index), int(count))

    def has(self, unit: int) -> bool:
        """Whether a unit belongs to this partition."""
        return unit % self.count == self.index


def find_units(inputs: Sequence[Input]) -> list[Unit]:
    """Cut the files into units of about equal size, in the order of their documents."""
    size = min(LARGEST_UNIT, max(SMALLEST_UNIT, sum(i.size for i in inputs) // USUAL_UNITS))
    units: list[Unit] = []
    waiting: list[Span] = []
    waiting_size = 0
    for source in inputs:
        for span in _spans(source, size):
            waiting.append(span)
            waiting_size += span.size
            if waiting_size >= size or len(waiting) >= SPANS:
                units.append(tuple(waiting))
                waiting, waiting_size = [], 0
    return [*units, tuple(waiting)] if waiting else units


def inputs_digest(inputs: Sequence[Input]) -> str:
    """16 hexadecimal digits of names, sizes and times, which identify the input files."""
    digest = hashlib.blake2b(digest_size=8)
    for source in inputs:
        status = source.path.stat()
        # the name of an unpacked or stored file comes from its origin
        when = 0 if source.name else status.st_mtime_ns
        name = source.path.name if source.name else source.path.absolute()
        digest.update(
            f"{name}\0{status.st_size}\0{when}\0{source.kind}{source.delimiter}\n".encode(
                "utf-8", "replace"
            )
        )
    return digest.hexdigest()


def _spans(source: Input, size: int) -> Iterator[Span]:
    """A file's spans of at least `size` each, except the last."""
    if source.kind == "parquet":
        with parquet_file(source) as file:
            column = file.schema_arrow.names.index(source.field)
            start = total = 0
            for group in range(file.num_row_groups):
                total += file.metadata.row_group(group).column(column).total_uncompressed_size
                if total >= size or group == file.num_row_groups - 1:
                    yield Span(source, start, group + 1, total)
                    start, total = group + 1, 0
        return
    start, end = 0, source.size
    if end <= size or source.kind in ("json", "csv"):
        yield Span(source, 0, end, end)
        return
    for cut in _cuts(source, size):
        if cut - start >= size and cut < end:
            yield Span(source, start, cut, cut - start)
            start = cut
    yield Span(source, start, end, end - start)


def _cuts(source: Input, size: int) -> Iterator[int]:
    """Places where a file may be cut, enough for spans of `size`."""
    end = source.size
    if source.kind == "jsonl":
        with source.path.open("rb") as file:
            at = 0
            while at + size < end:
                file.seek(at + size - 1)
                while (line := file.readline(READ_BYTES)) and not line.endswith(b"\n"):
                    pass
                at = file.tell()
                yield at
    elif source.separator:
        yield from separator_ends(source, 0, end)
    else:
        document, at = Document("", "", end, source.path), 0
        while at < end:
            at = document.part_end(at, end)
            yield at

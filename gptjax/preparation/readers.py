"""Documents out of files: text, text with separators, JSON lines, Parquet.

A `Span` is a stretch of one file that is read by itself; a file's spans, one after the other, give
the file's documents in order. Nothing in a text ends a preparation: unreadable records are left
out and counted in `Oddities`, and nothing that is left out or changed goes unsaid.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gptjax.base.errors import UserError
from gptjax.preparation.documents import BYTE_ORDER_MARK, Document, Passage
from gptjax.preparation.sources import Input

READ_BYTES = 2**20
RECORD_BYTES = 2**25  # a longer JSON line is left out: it has to be held in memory as a whole
_SURROGATES = re.compile("[\ud800-\udfff]")
ODDITIES = {
    "not_utf8": "parts with bytes that are no UTF-8, which became U+FFFD",
    "nul": "parts with NUL characters, kept: is this text?",
    "empty": "empty documents, left out",
    "no_separator": "text files in which --doc-separator does not occur, each one document",
    "long_lines": "stretches of 1 MiB without a line end, kept",
    "long_records": "JSON lines of over 32 MiB, left out",
    "bad_records": "lines that are no JSON, left out",
    "no_text": "records without text in the field that --text-field names, left out",
    "cut_blanks": "parts with more blanks in a row than the tokenizer takes, cut every 65,536",
    "cut_tokens": "places where a long document was cut within a token, for lack of a better one",
}


def describe_oddities(counts: Mapping[str, int], first: Mapping[str, str]) -> Iterator[str]:
    """One sentence a kind: how many, what became of them, where the first is."""
    for kind, meaning in ODDITIES.items():
        if count := counts.get(kind, 0):
            where = f" (first: {first[kind]})" if kind in first else ""
            yield f"{count:,} {meaning}{where}"


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `stop` of a file, or of a Parquet file its row groups."""

    input: Input
    start: int
    stop: int
    size: int
    """About how many bytes of text it holds."""


@dataclass
class Oddities:
    """Oddities of the text: how often each occurs, and where first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, where: str) -> None:
        """Count one finding."""
        self.counts[kind] += 1
        self.first.setdefault(kind, where)

    def merge(self, later: "Oddities") -> None:
        """Add the findings of a later part of the text."""
        self.counts.update(later.counts)
        self.first = {**later.first, **self.first}


def read_passages(span: Span, oddities: Oddities) -> Iterator[Passage]:
    """The documents of a span, or the passage of one that it holds; empty ones are counted."""
    source = span.input
    if source.kind == "text" and source.separator is None:
        document = Document(source.label, source.label, source.size, source.path)
        if span.start < span.stop:
            yield Passage(document, span.start, span.stop)
        else:
            oddities.add("empty", source.label)
        return
    readers = {"text": _separated, "jsonl": _json_lines, "parquet": _parquet_rows}
    try:
        for document in readers[source.kind](span, oddities):
            if document.size:
                yield Passage(document, 0, document.size)
            else:
                oddities.add("empty", document.id)
    except OSError as error:
        raise UserError(f"cannot read {source.label}: {error.strerror or error}") from error


def passages_of(spans: Iterable[Span], oddities: Oddities) -> Iterator[Passage]:
    """The documents of several spans, as `read_passages` gives them."""
    for span in spans:
        yield from read_passages(span, oddities)


def separator_ends(source: Input, start: int, stop: int) -> Iterator[int]:
    """Where each separator between `start` and `stop` ends, overlapping ones left out."""
    separator = separator_bytes(source)
    with source.path.open("rb") as file:
        file.seek(start)
        held, offset = b"", start
        while raw := file.read(min(READ_BYTES, stop - file.tell())):
            held += raw
            at = 0
            while (found := held.find(separator, at)) >= 0:
                at = found + len(separator)
                yield offset + at
            keep = max(at, len(held) - len(separator) + 1)
            held, offset = held[keep:], offset + keep


def separator_bytes(source: Input) -> bytes:
    r"""A text's separator; `\n`, `\r` and `\t` in it are the characters they stand for."""
    separator = source.separator or ""
    for name, meant in (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t")):
        separator = separator.replace(name, meant)
    return separator.encode("utf-8", "surrogateescape")


def _other_separator(source: Input) -> str:
    """Words that name a usual separator at the beginning of a text that lacks its own."""
    wanted = separator_bytes(source)
    bare = wanted.replace(b"\r\n", b"\n")
    usual = (bare.replace(b"\n", b"\r\n"), bare, wanted.strip(), b"\r\n\r\n", b"\n\n")
    with source.path.open("rb") as file:
        raw = file.read(READ_BYTES)
    found = (s for s in (*usual, b"<|endoftext|>", b"\f") if s and s in raw)
    return next((f", which has {s.decode('utf-8', 'replace')!a}" for s in found), "")


def parquet_file(source: Input) -> Any:
    """Open a Parquet file; raises `UserError` if it is none or lacks the text's column."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UserError(f"{source.label} needs pyarrow: pip install 'gptjax[hub]'") from None
    try:
        file = pq.ParquetFile(source.path, buffer_size=READ_BYTES, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{source.label} is no readable Parquet file: {error}") from error
    if source.field not in file.schema_arrow.names:
        raise UserError(
            f"{source.label} has no column {source.field!r}; its columns are "
            f"{', '.join(file.schema_arrow.names)}: name the one with the text by --text-field"
        )
    return file


def _separated(span: Span, oddities: Oddities) -> Iterator[Document]:
    source, start = span.input, span.start
    length = len(separator_bytes(source))
    for end in separator_ends(source, span.start, span.stop):
        yield _file_document(source, start, end - length)
        start = end
    if start == 0 and span.stop == source.size:
        oddities.add("no_separator", source.label + _other_separator(source))
    if start < span.stop:
        yield _file_document(source, start, span.stop)


def _file_document(source: Input, start: int, stop: int) -> Document:
    return Document(f"{source.label}, byte {start}", source.label, stop - start, source.path, start)


def _json_lines(span: Span, oddities: Oddities) -> Iterator[Document]:
    source = span.input
    with source.path.open("rb") as file:
        file.seek(span.start)
        while (at := file.tell()) < span.stop:
            where = f"{source.label}, byte {at}"
            line = file.readline(RECORD_BYTES)
            if not line:
                return
            if len(line) == RECORD_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(READ_BYTES)) and not rest.endswith(b"\n"):
                    pass
                oddities.add("long_records", where)
                continue
            if at == 0:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if line.strip():
                try:
                    text = line.decode()
                except UnicodeDecodeError:
                    oddities.add("not_utf8", where)
                    text = line.decode("utf-8", "replace")
                document = _from_json(text, source, where, oddities)
                if document is not None:
                    yield document


def _from_json(line: str, source: Input, where: str, oddities: Oddities) -> Document | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        oddities.add("bad_records", where)
        return None
    text = record.get(source.field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        fields = f" (it has {', '.join(record)})" if isinstance(record, dict) else ""
        oddities.add("no_text", where + fields)
        return None
    return _text_document(text, str(record.get("id", where)), source, where, oddities)


def _parquet_rows(span: Span, oddities: Oddities) -> Iterator[Document]:
    source, row = span.input, 0
    groups = list(range(span.start, span.stop))
    with parquet_file(source) as file:
        for batch in file.iter_batches(64, groups, [source.field], use_threads=False):
            for raw in _raw_texts(batch.column(0)):
                where = f"{source.label}, row {row} from row group {span.start} on"
                row += 1
                if raw is None:
                    oddities.add("no_text", where)
                else:
                    yield Document(where, source.label, len(raw), raw)


def _raw_texts(column: Any) -> list[bytes | None]:
    """The texts of an Arrow array as they are stored, since not all that is there is UTF-8.

    None where there is no text.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if any(is_text(column.type) for is_text in texts):
        column = column.cast(pa.large_binary())
    return [raw if isinstance(raw, bytes) else None for raw in column.to_pylist()]


def _text_document(text: str, id: str, source: Input, where: str, oddities: Oddities) -> Document:
    try:
        raw = text.encode()
    except UnicodeEncodeError:  # halves of surrogate pairs, which have no UTF-8
        oddities.add("not_utf8", where)
        raw = _SURROGATES.sub("\ufffd", text).encode()
    return Document(id, source.label, len(raw), raw)

"""Reads documents from files: text, text with separators, JSON, CSV, Parquet.

A `Span` is a stretch of one file that is read by itself; a file's spans, one after the other, give
the file's documents in order. Records that cannot be read are left out and counted in `Oddities`.
A JSON array and a CSV file are one span: only a reader that begins at the start of the file knows
whether a line break is inside a text.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gptjax.base.errors import UserError
from gptjax.preparation.documents import BYTE_ORDER_MARK, Document, Passage
from gptjax.preparation.oddities import Oddities
from gptjax.preparation.sources import Input

READ_BYTES = 2**20
RECORD_BYTES = 2**25  # a longer record is left out, because a record is held in memory at once
BROKEN = object()  # stands for the rest of a JSON file that cannot be read
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `stop` of a file, or the row groups of a Parquet file."""

    input: Input
    start: int
    stop: int
    size: int
    """An estimate of its bytes of text."""


def read_passages(span: Span, oddities: Oddities) -> Iterator[Passage]:
    """The documents of a span, or its passage of one document; empty ones are counted."""
    source = span.input
    if source.kind == "text" and source.separator is None:
        document = Document(source.label, source.label, source.size, source.path)
        if span.start < span.stop:
            yield Passage(document, span.start, span.stop)
        else:
            oddities.add("empty", source.label)
        return
    readers = {
        "text": _separated, "jsonl": _json_lines, "json": _json_records, "csv": _csv_records,
        "parquet": _parquet_rows,
    }  # fmt: skip
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
    """The end of each separator between `start` and `stop`, without overlapping ones."""
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
    """Words that name a usual separator near the beginning of a text without the given one."""
    wanted = separator_bytes(source)
    bare = wanted.replace(b"\r\n", b"\n")
    usual = (bare.replace(b"\n", b"\r\n"), bare, wanted.strip(), b"\r\n\r\n", b"\n\n")
    with source.path.open("rb") as file:
        raw = file.read(READ_BYTES)
    found = (s for s in (*usual, b"<|endoftext|>", b"\f") if s and s in raw)
    return next((f", which has {s.decode('utf-8', 'replace')!a}" for s in found), "")


def parquet_file(source: Input) -> Any:
    """Open a Parquet file; raises `UserError` if it is not one or lacks the text's column."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UserError(f"{source.label} needs pyarrow: pip install 'gptjax[hub]'") from None
    try:
        file = pq.ParquetFile(source.path, buffer_size=READ_BYTES, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{source.label} is not a readable Parquet file: {error}") from error
    return file


def json_values(source: Input) -> Iterator[Any]:
    """The values in a JSON file, or the elements of its array; `BROKEN` if it is cut short."""
    decoder, blanks = json.JSONDecoder(strict=False), re.compile(r"[\s,]*")
    with source.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        held, is_in_array = file.read(READ_BYTES), False
        at = 0
        while True:
            at = blanks.match(held, at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if at == len(held):
                held, at = file.read(READ_BYTES), 0
                if not held:
                    break
            elif held[at] == "[]"[is_in_array]:
                is_in_array, at = not is_in_array, at + 1
            else:
                try:
                    value, at = decoder.raw_decode(held, at)
                except (ValueError, RecursionError) as error:
                    left = len(held) - at
                    more = file.read(max(READ_BYTES, left)) if left < RECORD_BYTES else ""
                    if not more or _is_malformed(error, len(held)):
                        yield BROKEN
                        return
                    held, at = held[at:] + more, 0
                else:
                    yield value
    if is_in_array:
        yield BROKEN


def _is_malformed(error: Exception, length: int) -> bool:
    """Whether JSON of a given length is malformed, not just cut short."""
    if not isinstance(error, json.JSONDecodeError):
        return True
    return error.pos < length - 16 and not error.msg.startswith("Unterminated string")


def csv_rows(source: Input) -> Iterator[tuple[int, int, list[str] | None]]:
    """The rows of a CSV file, each with its first and last line number; None if malformed."""
    csv.field_size_limit(RECORD_BYTES)
    quoting = csv.QUOTE_MINIMAL if source.has_quotes else csv.QUOTE_NONE
    with source.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = iter(lambda: file.readline(RECORD_BYTES), "")
        delimiter, skips = source.delimiter[0], source.delimiter.endswith(" ")
        rows = csv.reader(
            lines, delimiter=delimiter, skipinitialspace=skips, quoting=quoting, strict=True
        )
        while True:
            line = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:
                row = None
            if row != []:  # of a blank line
                yield line, rows.line_num, row


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
    return _from_record(record, source, where, oddities)


def _from_record(record: Any, source: Input, where: str, oddities: Oddities) -> Document | None:
    is_table = isinstance(record, dict)
    text = record if source.field is None else record.get(source.field) if is_table else None
    if not isinstance(text, str):
        fields = f" (it has {', '.join(record)})" if is_table else ""
        oddities.add("no_text", where + fields)
        return None
    id = str(record.get("id", where)) if is_table else where
    return _text_document(text, id, source, where, oddities)


def _json_records(span: Span, oddities: Oddities) -> Iterator[Document]:
    for number, record in enumerate(json_values(span.input), 1):
        where = f"{span.input.label}, record {number}"
        if record is BROKEN:
            oddities.add("broken_json", where)
        elif document := _from_record(record, span.input, where, oddities):
            yield document


def _csv_records(span: Span, oddities: Oddities) -> Iterator[Document]:
    rows, source = csv_rows(span.input), span.input
    header = next(rows)[-1] or []
    column = header.index(source.field or "")
    for line, last, row in rows:
        where = f"{source.label}, line {line}"
        if row is None or len(row) != len(header):  # a quote left open takes many lines with it
            oddities.add("bad_rows", where if last <= line else f"{where} to {last}")
        else:
            yield _text_document(row[column], where, source, where, oddities)


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
    """The texts of an Arrow array as stored bytes, since they need not be UTF-8.

    None stands for a value that is not text.
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

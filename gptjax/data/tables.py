"""Reads a file of records whole: TSV, CSV, JSON (lines or an array) or Parquet, also compressed.

It is for sets of examples, which fit in memory many times over. Unlike the reader of `prepare`,
which leaves broken records of a web crawl out, it refuses them: an example is never lost in
silence.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.base.errors import UserError
from gptjax.base.files import require_fetched
from gptjax.data.foreign import format_by_magic
from gptjax.data.headers import has_header
from gptjax.tokenizers.plain import utf8

GZIP, ZSTD, PARQUET = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PAR1"
KINDS = {
    ".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".parquet": "parquet",
}  # fmt: skip
DELIMITERS = (",", ";", "|", "\t")
LONGEST_FIELD = 2**25  # characters
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Table(NamedTuple):
    """The records of a file."""

    path: Path
    kind: str
    """tsv, csv, jsonl, json or parquet."""
    columns: tuple[str, ...]
    """Names of all columns or fields; 0, 1, 2, ... without a header."""
    rows: list[dict[str, Any]]
    """The values of each record by column; a JSON record may lack some."""
    places: list[str]
    """Where each record is, such as line 3."""
    has_header: bool = True

    def where(self, row: int) -> str:
        """The file and the place of a row, for messages."""
        return f"{self.path}, {self.places[row]}"


def read_table(
    path: Path,
    kind: str = "auto",
    header: bool | None = None,
    named: Collection[str] = (),
    classes: Collection[str] = (),
) -> Table:
    """Read a file of a given kind; auto recognises it by its content and its name.

    `header` says whether the first line of TSV and CSV names the columns; with None, the columns
    `named`, the known `classes` and the line itself tell, or else the user has to.
    Raises `UserError` for a file that is missing, empty, damaged, or not a table, with the line at
    fault.
    """
    raw = _unpacked(path)
    kind = _kind(path, raw) if kind == "auto" else kind
    if kind == "parquet":
        return _from_parquet(path, raw)
    if what := format_by_magic(raw):
        raise UserError(f"{path} is {what}; expected TSV, CSV, JSON or Parquet: unpack it first")
    text = _decoded(path, raw)
    if not text.strip():
        raise UserError(f"{path} is empty; expected examples, one a line")
    if kind in ("json", "jsonl"):
        return _from_json(path, text)
    rows, lines = _csv_rows(path, text, kind)
    if header is None and (header := has_header(rows, named, classes)) is None:
        raise UserError(
            f"{path}, line {lines[0]}, may be a header or an example: {shown_line(rows[0])}. Give "
            "--data.header True if it names the columns, or False if it is an example"
        )
    columns = tuple(map(str, range(len(rows[0]))))
    if header:
        columns, rows, lines = tuple(name.strip() for name in rows[0]), rows[1:], lines[1:]
        _refuse_twice(path, columns)
    if not rows:
        raise UserError(f"{path} has a header and no example below it")
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    return Table(path, kind, columns, records, [f"line {n}" for n in lines], header)


def shown_line(fields: Sequence[object]) -> str:
    """The beginning of a line of a table, for messages.

    >>> shown_line(["ham", "see you"])
    'ham | see you'
    """
    return f"{' | '.join(map(str, fields)):.100}"


def _refuse_twice(path: Path, columns: Sequence[str]) -> None:
    if twice := [name for name, n in Counter(columns).items() if n > 1 and name]:
        raise UserError(f"{path} has two columns {twice[0]!r}: rename one of them")


def _unpacked(path: Path) -> bytes:
    """The content of a file; raises `UserError` if it cannot be read."""
    require_fetched(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        what = "is a directory, expected a file" if path.is_dir() else f"cannot be read: {error}"
        what = "does not exist: check the path" if not path.exists() else what
        raise UserError(f"{path} {what}") from error
    try:
        if raw.startswith(GZIP):
            return gzip.decompress(raw)
        if raw.startswith(ZSTD):
            import zstandard

            with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as file:
                return file.read()
    except ModuleNotFoundError:
        raise UserError(f"{path} needs zstandard: pip install 'gptjax[hub]'") from None
    except Exception as error:
        known = isinstance(error, OSError | EOFError | zlib.error)
        if not (known or type(error).__name__ == "ZstdError"):
            raise
        raise UserError(f"{path} is a damaged compressed file: {error}") from error
    return raw


def _kind(path: Path, raw: bytes) -> str:
    """The format by content; for text that is no JSON, by name, or else by its first line."""
    if raw.startswith(PARQUET):
        return "parquet"
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".zst", ".zstd")]
    named = KINDS.get(suffixes[-1]) if suffixes else None
    if named is not None:
        return named
    head = raw[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith((b"{", b"[{", b"[\n", b"[ ", b"[\r")):
        return "json"
    return "tsv" if b"\t" in head.partition(b"\n")[0] else "csv"


def _decoded(path: Path, raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(
            f"{path} is UTF-16; expected UTF-8: convert it with iconv -f utf-16 -t utf-8"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}, is not UTF-8 (byte 0x{raw[error.start]:02x}): convert it, for "
            f"example with iconv -f latin1 -t utf-8"
        ) from error


def _from_json(path: Path, text: str) -> Table:
    """An array, or one record a line."""
    values, places = [], []
    if text.lstrip().startswith("["):
        try:
            values = _parsed(text)
        except (ValueError, RecursionError) as error:
            raise _broken(path, getattr(error, "lineno", 1), error) from error
        places = [f"record {n}" for n in range(1, len(values) + 1)]
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    values.append(_parsed(line))
                except (ValueError, RecursionError) as error:
                    raise _broken(path, number, error) from error
                places.append(f"line {number}")
    columns: dict[str, None] = {}
    for value, place in zip(values, places, strict=True):
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise UserError(f"{path}, {place}, is a JSON {kind}; expected an object with fields")
        columns |= dict.fromkeys(value)
    if not values:
        raise UserError(f"{path} is an empty array; expected examples")
    kind = "json" if places[0].startswith("record") else "jsonl"
    return Table(path, kind, tuple(columns), values, places)


def _parsed(text: str) -> Any:
    """The value of JSON; half a surrogate pair, which no file can hold, becomes `?`."""
    value = json.loads(text, strict=False)
    if not _SURROGATE.search(text):
        return value
    return json.loads(utf8(json.dumps(value, ensure_ascii=False)))


def _broken(path: Path, line: int, error: Exception) -> UserError:
    reason = getattr(error, "msg", str(error))
    return UserError(
        f"{path}, line {line}, is broken JSON: {reason}. Expected an object on each line, or an "
        "array of objects: correct the line or remove it"
    )


def _from_parquet(path: Path, raw: bytes) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UserError(f"{path} needs pyarrow: pip install 'gptjax[hub]'") from None
    try:
        file = pq.ParquetFile(io.BytesIO(raw))
        _refuse_twice(path, file.schema_arrow.names)
        rows = file.read().to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from error
    if not rows:
        raise UserError(f"{path} has no row; expected examples")
    places = [f"row {n}" for n in range(1, len(rows) + 1)]
    return Table(path, "parquet", tuple(rows[0]), rows, places)


def _csv_rows(path: Path, text: str, kind: str) -> tuple[list[list[str]], list[int]]:
    """Rows of equal length, and the line of each.

    In CSV quotes surround fields. In TSV they are plain characters, as its standard has it, unless
    only quoted fields make rows of equal length, or a field is quoted as CSV writes it.
    """
    if kind == "tsv":
        tries = [("\t", False), ("\t", True)]
    else:
        tries = [(d, True) for d in DELIMITERS if d in text.partition("\n")[0]] or [(",", True)]
    looks = [_split(text, delimiter, has_quotes) for delimiter, has_quotes in tries]
    if kind == "tsv" and not looks[1].problem and _are_quoted(looks[0].rows):
        looks.reverse()
    best = max(looks, key=lambda look: (not look.problem, len(look.rows[0]) if look.rows else 0))
    best = looks[0] if all(look.problem for look in looks) else best
    if best.problem:
        raise UserError(f"{path}, {best.problem}")
    return best.rows, best.lines


class _Split(NamedTuple):
    rows: list[list[str]]
    lines: list[int]
    problem: str


def _split(text: str, delimiter: str, has_quotes: bool) -> _Split:
    """Rows, their lines, and what is wrong with the first bad one."""
    csv.field_size_limit(LONGEST_FIELD)
    quoting = csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    rows: list[list[str]] = []
    lines: list[int] = []
    line = 1
    try:
        for row in reader:
            if row:
                if rows and len(row) != len(rows[0]):
                    problem = (
                        f"line {line}, has {len(row)} columns, expected {len(rows[0])} as in line "
                        f"{lines[0]}: correct the line, or its quotes"
                    )
                    return _Split(rows, lines, problem)
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        return _Split(rows, lines, f"line {line}, is broken: {error}. Correct its quotes")
    return _Split(rows, lines, "")


def _are_quoted(rows: Sequence[Sequence[str]]) -> bool:
    """Whether every field that begins with a quote is quoted, and one holds a doubled quote."""
    fields = [field for row in rows for field in row if field.startswith('"')]
    inner = [f[1:-1].replace('""', "") for f in fields if len(f) > 1 and f.endswith('"')]
    is_well_formed = len(inner) == len(fields) and not any('"' in f for f in inner)
    return is_well_formed and any('""' in field[1:-1] for field in fields)

"""Recognises the format of a file by its content; in doubt, its name decides.

A file is JSON, CSV or TSV only if it begins with records. A file that merely looks like one of them
is plain text, and a note says so. The format that --format names is used, or the file is refused.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from gptjax.base.errors import UserError
from gptjax.data.foreign import format_by_magic
from gptjax.preparation.documents import BYTE_ORDER_MARK, HASHED_BYTES
from gptjax.preparation.oddities import Oddities
from gptjax.preparation.readers import BROKEN, RECORD_BYTES, csv_rows, json_values, parquet_file
from gptjax.preparation.sources import Input
from gptjax.preparation.walking import kind_named

LOOKED = 100  # records that decide the format of a file and its fields
JSON, TABLES = ("json", "jsonl"), ("csv", "tsv")
DELIMITERS = (",", "\t", ";", "|")
# the usual form of a column name; in prose a blank follows a comma
_COLUMN_NAME = re.compile(r"(?=.*[^\W\d_])\w(?:[\w .:/#%()-]{0,62}[\w)%])?")
_TEXT_TYPE = re.compile(r"(dictionary<values=)?(large_)?(string|binary)")
_LETTER = re.compile(r"[^\W\d_]")
# a number, a date or a truth value, not text
_NO_TEXT = re.compile(r"[\W\d_]*(?:[TZEe][\W\d_]*)*|(?i:true|false|yes|no|null|none|nan|n/a)")


def recognise_input(source: Input, oddities: Oddities) -> Input:
    """The input, a plain file, with its kind, text field and delimiter.

    Raises `UserError` if the file does not have the format of --format, or if its text field is not
    clear.
    """
    kind, named = source.kind, kind_named(Path(source.label))
    wanted = named if kind == "auto" else kind
    with source.path.open("rb") as file:
        head = file.read(HASHED_BYTES).removeprefix(BYTE_ORDER_MARK).lstrip()
    if wanted == "parquet" or (kind == "auto" and head.startswith(b"PAR1")):
        return _as_parquet(source, oddities)
    found = None
    if kind != "text" and (what := format_by_magic(head)):
        raise UserError(f"{source.label} is {what}, expected text: give the files in it instead")
    if kind != "text" and head:
        begins_as_json = head[:1] in (b"{", b"[")
        if kind in ("auto", *JSON) and (begins_as_json or wanted in JSON):
            found = _as_json(source, head, wanted, oddities)
        has_lines = b"\n" in head or b"\r" in head or wanted in TABLES
        if found is None and kind in ("auto", *TABLES) and has_lines:
            found = _as_csv(source, head, wanted, oddities)
        if found is None and kind != "auto":
            begins = head[:40].decode("utf-8", "replace")
            raise UserError(
                f"{source.label} is not {kind}: it begins with {begins!r}; leave out --format, or "
                "give --format text"
            )
        if found is None and (named or begins_as_json):
            oddities.add("looks_like", source.label)
    elif wanted == "jsonl":  # an empty file of JSON lines has no document, not an empty one
        found = replace(source, kind="jsonl")
    return replace(source, kind="text") if found is None else replace(found, separator=None)


def choose_field(
    label: str,
    given: str | None,
    fields: Mapping[str, bool],
    oddities: Oddities | None = None,
    whence: str = "",
) -> str:
    """Choose the text field among `fields`, which map each name to whether it holds strings.

    It is the given one, else `text`, else the only field of strings, which is noted in `oddities`.
    Raises `UserError` that lists the fields.
    """
    strings = [name for name, is_text in fields.items() if is_text]
    if given is not None and given in fields:
        return given
    if given is None and "text" in (strings or fields):
        return "text"
    if given is None and len(strings) == 1:
        if oddities is not None:
            oddities.add("other_field", f"{label}: {strings[0]}")
        return strings[0]
    raise UserError(
        f"{label} has no field {given or 'text'!r}; its fields{whence} are "
        f"{', '.join(f'{name:.60}' for name in fields)}: name the one with the text by --text-field"
    )


@dataclass
class _Look:
    """The first values of a JSON file, or rows of a CSV file."""

    total: int = 0
    tables: int = 0
    """Objects, or rows that fit the header."""
    strings: int = 0
    broken: int = 0
    fields: dict[str, bool] = field(default_factory=dict)
    """Fields, and whether they hold strings."""

    def add(self, table: Mapping[str, bool]) -> None:
        """Count one more table, of fields that hold strings or not."""
        self.tables += 1
        for name, is_text in table.items():
            self.fields[name] = is_text or self.fields.get(name, False)


def _as_parquet(source: Input, oddities: Oddities) -> Input:
    with parquet_file(source) as file:
        fields = {c.name: bool(_TEXT_TYPE.match(str(c.type))) for c in file.schema_arrow}
    chosen = choose_field(source.label, source.field, fields, oddities)
    return replace(source, kind="parquet", field=chosen, separator=None)


def _as_json(source: Input, head: bytes, wanted: str | None, oddities: Oddities) -> Input | None:
    """The input as JSON lines, or as an array or objects over many lines, if it holds records."""
    lines, kind = _look_at(_line_values(source)), "jsonl"
    found, whole = lines, lines.total
    begins_well = next(_line_values(source), BROKEN) is not BROKEN
    some = lines.tables + lines.strings if wanted == "jsonl" else 2 * lines.tables > lines.total
    if not (begins_well and some):
        found, kind = _look_at(json_values(source)), "json"
        whole = found.total - found.broken
        are_records = 2 * found.tables > whole or 0 < whole == found.strings
        # believe the name of a file that is cut short early
        if source.kind == "jsonl" or not are_records or (found.broken and wanted not in JSON):
            if wanted != "jsonl" or (source.kind == "jsonl" and not lines.tables):
                return None
            found, kind = lines, "jsonl"
    if not found.tables:
        return replace(source, kind=kind, field=None if found.strings else source.field or "text")
    is_lone = whole == 1 and head.startswith(b"{") and source.kind == "auto" and wanted != "jsonl"
    if is_lone and not found.fields.get(source.field or "text"):
        return None  # a configuration, say
    chosen = choose_field(source.label, source.field, found.fields, oddities)
    return replace(source, kind=kind, field=chosen)


def _as_csv(source: Input, head: bytes, wanted: str | None, oddities: Oddities) -> Input | None:
    """The input as CSV with the delimiter that fits the most rows, if it is a table with a header.

    Without the name of a table, it is one only if its header names the text field, or if all rows
    fit and exactly one column is text.
    """
    # in a table a blank may follow a delimiter; in prose it follows the commas too
    looks, least, delimiters = [], 1, (*DELIMITERS, ", ", "; ")
    if source.kind == "tsv":
        delimiters = ("\t",)
    elif wanted not in TABLES:  # most texts, and there may be many: look no further than needed
        least, delimiters = 2, [d for d in DELIMITERS if d.encode() in head]
    for delimiter in delimiters:
        for has_quotes in (True, False):
            tried = replace(source, kind="csv", delimiter=delimiter, has_quotes=has_quotes)
            found = _look_at_rows(tried, least)
            share = found.tables / found.total if found.total else 1.0
            is_neat = not any(name.startswith(" ") for name in found.fields)
            looks.append((share * (len(found.fields) > 1), share, is_neat, tried, found))
    if not looks:
        return None
    _, share, _, best, found = max(looks, key=lambda look: look[:3])
    names = list(found.fields)
    well_named = all(_COLUMN_NAME.fullmatch(name) for name in names if name)
    if wanted in TABLES:
        is_column = len(names) == 1 and share == 1 and re.fullmatch(r"\w+", names[0])
        if share < 0.5 or (len(names) < 2 and not is_column):
            return None
        if not all(_LETTER.search(name) for name in names if name):
            raise UserError(
                f"{source.label} has no header: its first row is {', '.join(names)}. Expected the "
                "names of the columns there; --format text reads the file as plain text"
            )
    elif len(names) < 2 or share < 0.5 or not found.total or not well_named:
        return None
    elif (source.field or "text") not in names and (
        source.field or found.total < 2 or share < 1 or sum(found.fields.values()) != 1
    ):
        if share > 0.9:
            oddities.add("looks_like", source.label)
        return None
    whence = ", by its first row,"
    chosen = choose_field(source.label, source.field, found.fields, oddities, whence)
    return replace(best, field=chosen)


def _look_at_rows(source: Input, least: int) -> _Look:
    """The header and the rows below it; the header alone if it has fewer than `least` columns."""
    found, rows = _Look(), csv_rows(source)
    header = next(rows)[-1] or []
    found.fields = dict.fromkeys(header, False)
    for *_, row in islice(rows, LOOKED if len(header) >= least else 0):
        found.total += 1
        if row is not None and len(row) == len(header):
            found.add({n: not _NO_TEXT.fullmatch(v[:64]) for n, v in zip(header, row, strict=True)})
    return found


def _line_values(source: Input) -> Iterator[Any]:
    with source.path.open("rb") as file:
        for line in iter(lambda: file.readline(RECORD_BYTES), b""):
            if line := line.removeprefix(BYTE_ORDER_MARK).strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    yield BROKEN


def _look_at(values: Iterable[Any]) -> _Look:
    found = _Look()
    for value in islice(values, LOOKED):
        found.total += 1
        found.broken += value is BROKEN
        found.strings += isinstance(value, str)
        if isinstance(value, dict):
            found.add({name: isinstance(text, str) for name, text in value.items()})
    return found

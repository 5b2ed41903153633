"""The rows of a published test, with the place of each row for messages.

A test is a file of JSON lines (compressed or not), a JSON array, a Parquet file, or a data set of
the hub by name.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gptjax.base.errors import UserError
from gptjax.base.files import require_fetched
from gptjax.config.names import HUB_FORM, read_hub_name
from gptjax.evaluation.pairs import refuse
from gptjax.preparation.hub.streaming import stream_records
from gptjax.preparation.readers import BROKEN, json_values, parquet_file
from gptjax.preparation.sources import Input, unpack

T = TypeVar("T")


def read_records(
    data: str, read: Callable[[dict[str, Any], str], T], limit: int | None = None
) -> list[T]:
    """`read` every row of a test, or the first `limit`; it gets the row and its place in words.

    `read` raises `ValueError` for a row that is not what it should be. Raises one `UserError` that
    lists the bad rows, or says that the data cannot be read or have no rows.
    """

    def checked(row: Any, place: str) -> T:
        if not isinstance(row, dict):
            raise ValueError(f"expected a JSON object, not {_shown(row)}")
        return read(row, place)

    return read_values(data, checked, limit)


def read_values(data: str, read: Callable[[Any, str], T], limit: int | None = None) -> list[T]:
    """`read_records` for rows that need not be JSON objects: a line may also be plain text."""
    found: list[T] = []
    problems: list[str] = []
    for number, (place, row) in enumerate(_rows(data)):
        if number == limit:
            break
        try:
            if row is BROKEN:
                raise ValueError("expected JSON; this is cut short or damaged")
            found.append(read(row, place))
        except ValueError as error:
            problems.append(f"{place}: {error}")
    refuse(problems, f"{data} has rows that cannot be used")
    if not found:
        raise UserError(f"{data} has no rows: expected one JSON object on each line")
    return found


def text_field(row: dict[str, Any], name: str) -> str:
    """A field that must be a text; raises `ValueError` otherwise.

    >>> text_field({"ctx": "A man"}, "ctx")
    'A man'
    """
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"expected a text under {name!r}, {_came(row, name)}")
    return value


def text_list_field(row: dict[str, Any], name: str) -> tuple[str, ...]:
    """A field that must be a list of two or more texts that are not empty; else `ValueError`."""
    value = row.get(name)
    texts = tuple(value) if isinstance(value, list) else ()
    if len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"expected two or more texts under {name!r}, {_came(row, name)}")
    return texts


def label_field(row: dict[str, Any], name: str, choices: tuple[str, ...]) -> int:
    """The number of the right choice, from 0: a number, its digits, or the choice's own text.

    >>> label_field({"label": "no"}, "label", ("yes", "no"))
    1
    >>> label_field({"label": "0"}, "label", ("yes", "no"))
    0
    """
    value = row.get(name)
    if isinstance(value, str):
        number = int(value) if value.isascii() and value.isdecimal() and len(value) < 9 else None
        if choices.count(value) == 1:
            if number not in (None, choices.index(value)) and number < len(choices):
                raise ValueError(f"{name!r} {value!r} may be a number or a choice: give the number")
            return choices.index(value)
        value = value if number is None else number
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(choices):
        raise ValueError(
            f"expected under {name!r} the number of the right choice, 0 to {len(choices) - 1}, or "
            f"its text, {_came(row, name)}"
        )
    return value


def _came(row: dict[str, Any], name: str) -> str:
    if name in row:
        return f"not {_shown(row[name])}"
    return f"and the row has {', '.join(map(repr, list(row)[:8])) or 'no fields'}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _rows(data: str) -> Iterator[tuple[str, Any]]:
    """The place and the value of each row: JSON, BROKEN, or the text of a line that is no JSON."""
    path = Path(data)
    if not path.exists() and (name := read_hub_name(data)) is not None:
        try:
            for number, row in enumerate(stream_records(name), 1):
                yield f"row {number}", row
        except UserError as error:
            raise UserError(f"there is no file {data} on this machine, and {error}") from error
        return
    if not path.is_file():
        raise UserError(
            f"there is no file {data}: expected JSON lines or Parquet, or a data set of the hub, "
            f"{HUB_FORM}"
        )
    require_fetched(path)
    with tempfile.TemporaryDirectory(prefix="gptjax-evaluate-") as directory:
        source = unpack(Input(path, name=data), Path(directory))
        with source.path.open("rb") as file:
            head = file.read(4)
        if head == b"PAR1":
            yield from _parquet_rows(source)
        elif head[:1] == b"[":
            for number, row in enumerate(json_values(source), 1):
                yield f"record {number}", row
        else:
            yield from _lines(source)


def _lines(source: Input) -> Iterator[tuple[str, Any]]:
    with source.path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            place = f"line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{source.label}, {place}, is not UTF-8 text: {error}") from error
            if line.strip():
                yield place, _value(line)


def _value(line: str) -> Any:
    """The JSON object of a line; BROKEN if it only begins like one, and other lines as text."""
    if not line.lstrip().startswith("{"):
        return line
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return BROKEN


def _parquet_rows(source: Input) -> Iterator[tuple[str, Any]]:
    with parquet_file(source) as file:
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row

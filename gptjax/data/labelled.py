"""Labelled texts as they are read from files: the texts of an example, and its class by name."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.base.errors import UserError
from gptjax.config import Config
from gptjax.data.columns import (
    ENDINGS,
    LONGEST_LABEL,
    Columns,
    columns_of,
    counts_of,
    is_there,
    no_column,
)
from gptjax.data.splitting import Key
from gptjax.data.tables import Table, read_table, shown_line


class Labelled(NamedTuple):
    """An example as it is read: its texts in their order, its label, and where it is."""

    texts: Key
    label: str
    where: str = ""


class Reading(NamedTuple):
    """What was taken for what in a file; another file can be read the same way."""

    columns: Columns
    has_header: bool
    numbering: int | None = None
    """The number of the first answer, if the labels of a choice are numbers."""


class LabelledFile(NamedTuple):
    """The examples of one file, and how it was read."""

    rows: list[Labelled]
    reading: Reading
    note: str = ""
    """What was taken for what."""


def read_labelled(config: Config, path: Path, like: Reading | None = None) -> LabelledFile:
    """Read a file of labelled texts, or one that is `like` another.

    Raises `UserError` for a file without the columns, and for an example without text or label.
    """
    data, form = config.data, config.classify.form
    header, named = data.header, (data.text_field, data.label_field, data.pair_field)
    if like is not None and header is None:
        header = like.has_header
    given = {name for name in (*named, *data.choice_fields) if name is not None}
    table = read_table(path, data.input_format, header, given, config.classify.labels)
    columns = columns_of(table, data, form) if like is None else like.columns
    for name in (*columns.texts, columns.label, *columns.others):
        if name not in table.columns:
            raise no_column(table, name) if like is None else _unlike(table, name, columns)
    texts = [_texts(table, row, columns) for row in range(len(table.rows))]
    labels = [_label(table, row, columns.label) for row in range(len(table.rows))]
    if form != "choice":
        labels = [_as_whole(label) for label in labels]
        if data.header is None and like is None and not table.has_header:
            _ask_about_header(table, labels, config.classify.labels)
    numbering = None
    if form == "choice":
        known = 1 if columns.others == ENDINGS else None if like is None else like.numbering
        labels, numbering = _right_answers(table, texts, labels, known)
    rows = [
        Labelled(own, label, table.where(n))
        for n, (own, label) in enumerate(zip(texts, labels, strict=True))
    ]
    header_note = "" if table.has_header else " without a header"
    note = f"{path}: {table.kind}{header_note}; {columns}"
    return LabelledFile(rows, Reading(columns, table.has_header, numbering), note)


def _unlike(table: Table, name: str, columns: Columns) -> UserError:
    header = "" if table.has_header else ", without a header"
    return UserError(
        f"{table.path} has no column {name!r}; its columns are {', '.join(table.columns)}{header}. "
        f"Expected the columns of the training file: {columns}"
    )


def _texts(table: Table, row: int, columns: Columns) -> Key:
    parts = [_text(table, row, name) for name in columns.texts]
    return (" ".join(parts), *(_text(table, row, name) for name in columns.others))


def _text(table: Table, row: int, column: str) -> str:
    value = table.rows[row].get(column)
    if not is_there(value) or (isinstance(value, str) and not value.strip()):
        raise UserError(
            f"{table.where(row)}, has no text in {column!r}: add it or remove the example"
        )
    if not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise UserError(f"{table.where(row)}, has a {kind} in {column!r}; expected a text")
    return str(value)


def _label(table: Table, row: int, column: str) -> str:
    value = table.rows[row].get(column)
    if isinstance(value, list | tuple | dict):
        sizes = Counter(_size(other.get(column)) for other in table.rows)
        lines = "".join(f"\n  {n:,} with {size}" for size, n in sorted(sizes.items()))
        raise UserError(
            f"{table.where(row)}, has several labels in {column!r}; expected one. Examples in the "
            f"file:{lines}\nmake one label of them, or an example for each"
        )
    name = label_name(value) if is_there(value) else ""
    if not name:
        raise UserError(
            f"{table.where(row)}, has no label in {column!r}: add it or remove the example"
        )
    return name


def _size(value: Any) -> str:
    count = len(value) if isinstance(value, list | tuple | dict) else 1
    return f"{count} label{'s' * (count != 1)}"


def label_name(value: Any) -> str:
    """The name of a class, whatever type its file gives it.

    >>> label_name(1.0), label_name("1 "), label_name(True)
    ('1', '1', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def labels_in_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Class names once each: whole numbers by their value, then words by their letters.

    >>> labels_in_order(["10", "9", "9"]), labels_in_order(["spam", "ham"])
    (('9', '10'), ('ham', 'spam'))
    """
    return tuple(sorted(set(labels), key=lambda n: (not _is_whole(n), _is_whole(n) and int(n), n)))


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and len(name) <= LONGEST_LABEL


def _as_whole(name: str) -> str:
    """A class name; 0.0, 1.0, ... as the whole numbers that they are also in JSON.

    >>> _as_whole("1.0"), _as_whole("-0.0"), _as_whole("1.5")
    ('1', '0', '1.5')
    """
    whole, point, rest = name.partition(".")
    if not point or not _is_whole(whole) or rest.strip("0") or not rest:
        return name
    return str(int(whole))


def _ask_about_header(table: Table, labels: Sequence[str], known: Collection[str]) -> None:
    """Raise `UserError` if the first line has a class of its own, and others share theirs."""
    counts = Counter(labels)
    if counts[labels[0]] > 1 or labels[0] in known or len(counts) == len(labels):
        return
    raise UserError(
        f"{table.where(0)}, has the label {labels[0]!r}, which no other line has: is it a header? "
        f"The line is: {shown_line(list(table.rows[0].values()))}. Give --data.header True if it "
        "names the columns, or False if it is an example"
    )


def _right_answers(
    table: Table, texts: Sequence[Key], labels: Sequence[str], numbering: int | None
) -> tuple[list[str], int | None]:
    """The number of each right answer, from 1 on, and the number that the file gives the first."""
    answers = len(texts[0]) - 1
    pairs = list(zip(texts, labels, strict=True))
    if numbering is None and all(label in own[1:] for own, label in pairs):
        return [str(own.index(label, 1)) for own, label in pairs], None
    if numbering is None:
        numbering = _numbering(table, labels, answers)
    for row, label in enumerate(labels):
        if not _is_whole(label) or not numbering <= int(label) < numbering + answers:
            raise UserError(
                f"{table.where(row)}, has the label {label!r}; expected the number of the right "
                f"answer, {numbering} to {numbering + answers - 1}, or its text"
            )
    return [str(int(label) + 1 - numbering) for label in labels], numbering


def _numbering(table: Table, labels: Sequence[str], answers: int) -> int:
    """Whether answers are numbered from 0 or from 1; raises `UserError` if nothing tells."""
    found = set(labels)
    if "0" in found or not found <= {str(n) for n in range(1, answers)}:
        return 0 if "0" in found else 1
    raise UserError(
        f"{table.path} numbers its right answers {counts_of(Counter(labels))}; with {answers} "
        "answers these may count from 0 or from 1: write the text of the right answer instead"
    )

"""Which column of a table holds the label, and which the text: by flag, by name, or by content.

Nothing is guessed between two that fit: then the choice is left to the user, with a table of what
is there.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gptjax.base.errors import UserError
from gptjax.config import DataConfig
from gptjax.data.tables import Table

LABEL, TEXT = "label", "text"
LONGEST_LABEL = 64  # characters
MOST_CLASSES = 1000
SHOWN = 6  # classes of a column in a message
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text", "text2"),
)
STORY = tuple(f"InputSentence{n}" for n in range(1, 5))
ENDINGS = ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2")
RIGHT_ENDING = "AnswerRightEnding"
_LETTER = re.compile(r"[^\W\d_]")


class UnclearColumns(UserError):
    """A file does not say which of its columns are meant; the message names the flags that do."""


class Columns(NamedTuple):
    """The columns that make an example."""

    texts: tuple[str, ...]
    """The first text: its parts, with a blank between them."""
    label: str
    others: tuple[str, ...] = ()
    """The second text of a pair, or the answers of a choice."""

    def __str__(self) -> str:
        others = f", then {', '.join(self.others)}" if self.others else ""
        return f"text from {', '.join(self.texts)}{others}; label from {self.label}"


def columns_of(table: Table, data: DataConfig, form: str) -> Columns:
    """Choose the columns for a form of input; raises `UnclearColumns` if a choice is not clear."""
    given = (data.text_field, data.label_field, data.pair_field, *data.choice_fields)
    for name in given:
        if name is not None and name not in table.columns:
            raise no_column(table, name)
    if form == "choice" and not data.choice_fields:
        if set(table.columns) >= {*STORY, *ENDINGS, RIGHT_ENDING}:
            return Columns(STORY, RIGHT_ENDING, ENDINGS)
        raise UnclearColumns(
            f"{table.path} has no columns of ROCStories ({STORY[0]} to {RIGHT_ENDING}); its "
            f"columns are {_listed(table)}: name those of the answers by --data.choice-fields"
        )
    others = tuple(data.choice_fields)
    text = data.text_field
    if form in ("pair", "similarity"):
        text, others = _pair(table, data)
    taken = {text, *others} - {None}
    label = data.label_field or _label_column(table, taken)
    columns = Columns((text or _text_column(table, {label, *others}),), label, others)
    names = (*columns.texts, *columns.others, label)
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise UserError(
            f"{table.path}: the column {twice[0]!r} has two parts ({columns}); expected another "
            f"column for each. Its columns are {_listed(table)}: correct the flags --data.*-field"
        )
    return columns


def no_column(table: Table, name: str) -> UnclearColumns:
    """A column that a flag names and a table lacks."""
    return UnclearColumns(f"{table.path} has no column {name!r}; its columns are {_listed(table)}")


def _listed(table: Table) -> str:
    hint = "" if table.has_header else " (without a header; give --data.header True if it has one)"
    return ", ".join(f"{name:.60}" for name in table.columns) + hint


def _values(table: Table, column: str) -> list[Any]:
    return [row.get(column) for row in table.rows]


def _pair(table: Table, data: DataConfig) -> tuple[str | None, tuple[str, ...]]:
    """The columns of two texts; the first is None if content has to decide."""
    if data.pair_field is not None:
        return data.text_field, (data.pair_field,)
    for first, second in PAIRS:
        if {first, second} <= set(table.columns) and data.text_field in (None, first):
            return first, (second,)
    raise UnclearColumns(
        f"a pair needs a second text, and {table.path} has the columns {_listed(table)}: name it "
        "by --data.pair-field"
    )


def _label_column(table: Table, taken: Iterable[str | None]) -> str:
    free = [name for name in table.columns if name not in set(taken)]
    alike = [n for n in free if n and _is_label(_values(table, n))]
    called = [n for n in alike if LABEL in n.lower()]
    if LABEL in free and set(called) <= {LABEL}:
        return LABEL
    found = called or alike
    several = [n for n in found if len(_classes(table, n)) > 1] or found
    if len(several) == 1:
        return several[0]
    if not several:
        raise UnclearColumns(
            f"{table.path} has no column that is clearly the label; its columns are "
            f"{_listed(table)}: name it by --data.label-field"
        )
    width = max(map(len, several))
    lines = "".join(f"\n  {n:<{width}}  {counts_of(_classes(table, n))}" for n in several)
    raise UnclearColumns(
        f"{table.path} has {len(several)} columns that may be the label:{lines}\n"
        "name the one to learn by --data.label-field"
    )


def _classes(table: Table, column: str) -> Counter[str]:
    return Counter(str(value) for value in _values(table, column))


def counts_of(classes: Counter[str]) -> str:
    """The number of classes, and the most frequent ones with their counts.

    >>> counts_of(Counter({"ham": 4827, "spam": 747}))
    '2 classes: 4,827 ham, 747 spam'
    >>> counts_of(Counter({"0": 3}))
    '1 class: 3 of 0'
    """
    shown = ", ".join(
        f"{n:,} {'of ' * name.isdecimal()}{name}" for name, n in classes.most_common(SHOWN)
    )
    more = f", and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
    return f"{len(classes)} class{'es' * (len(classes) != 1)}: {shown}{more}"


def is_there(value: Any) -> bool:
    """Whether a value is more than a gap: null, or the NaN or infinity that some writers put there.

    >>> [is_there(value) for value in (None, float("nan"), float("inf"), 0.0, "nan")]
    [False, False, False, True, True]
    """
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _is_label(values: Sequence[Any]) -> bool:
    """Whether these may be classes: short words or whole numbers that come again and again."""
    there = [value for value in values if is_there(value) and value != ""]
    if not there or any(isinstance(v, float) and not v.is_integer() for v in there):
        return False
    if not all(isinstance(v, str | int | float) and len(str(v)) <= LONGEST_LABEL for v in there):
        return False
    return len(set(map(str, there))) <= min(len(there) / 2, MOST_CLASSES)


def _text_column(table: Table, taken: set[str]) -> str:
    free = [name for name in table.columns if name not in taken]
    if TEXT in free:
        return TEXT
    texts = [name for name in free if name and _is_text(_values(table, name))]
    texts = [name for name in texts if not _is_label(_values(table, name))] or texts
    if len(texts) == 1:
        return texts[0]
    which = f"{len(texts)} columns of text" if texts else "no column of text"
    raise UnclearColumns(
        f"{table.path} has {which} beside the label; its columns are {_listed(table)}: name the "
        "one to read by --data.text-field"
    )


def _is_text(values: Sequence[Any]) -> bool:
    """Whether most of these are strings with letters."""
    words = sum(isinstance(v, str) and bool(_LETTER.search(v)) for v in values)
    return words > len(values) / 2

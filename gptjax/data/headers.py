"""Whether the first line of a TSV or CSV file names its columns: by its words, or by what is below.

A line that may be either is left to the user: a header that is read as an example becomes a class
of its own, and an example that is read as a header is lost.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence

HEADINGS = {
    "answer", "body", "categories", "category", "class", "comment", "content", "document",
    "emotion", "headline", "hypothesis", "id", "input", "instruction", "intent", "label", "labels",
    "message", "messages", "output", "premise", "query", "question", "question1", "question2",
    "review", "score", "sentence", "sentence1", "sentence2", "sentiment", "sms", "target", "text",
    "text1", "text2", "title", "topic", "tweet", "utterance", "v1", "v2",
}  # fmt: skip
LONGEST_NAME = 40  # characters
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_NAME = re.compile(r"[\w.:/()#-]*")


def has_header(
    rows: Sequence[Sequence[str]], named: Collection[str] = (), classes: Collection[str] = ()
) -> bool | None:
    """Whether the first of `rows` names the columns; None if nothing tells.

    It does if it has one of the names that the user gave, or only usual headings. It does not if
    it has one of the known `classes`. Else it does if it has a usual heading, and no field that its
    column has again; without a heading, if it stands above a column of numbers, or if single words
    stand above a column of a few values.

    >>> has_header([["intent", "utterance"], ["greet", "hello"]])
    True
    >>> has_header([["ham", "Text"], ["ham", "see you"]]) is None
    True
    """
    first, below = [field.strip() for field in rows[0]], rows[1:]
    columns = [Counter(row[column].strip() for row in below) for column in range(len(first))]
    given = {name for name in named if not name.isdecimal()}  # 0, 1, ... are those of no header
    usual = [name for name in first if name.lower() in HEADINGS]
    if given & set(first) or (usual and len(usual) == sum(map(bool, first))):
        return True
    if set(first) & set(classes):
        return False
    again = [name for name, values in zip(first, columns, strict=True) if name and name in values]
    if set(usual) - set(again):
        return None if again else True
    if first == list(map(str, range(len(first)))) and len(first) > 1:
        return True  # as pandas writes columns without names
    if not below or any(_NUMBER.fullmatch(field) for field in first):
        return False
    are_names = all(len(name) <= LONGEST_NAME and _NAME.fullmatch(name) for name in first)
    for name, values in zip(first, columns, strict=True):
        is_repeated = are_names and 1 < len(values) <= len(below) / 4
        are_numbers = all(_NUMBER.fullmatch(value) for value in values)
        if name and name not in values and (is_repeated or are_numbers):
            return True
    return False

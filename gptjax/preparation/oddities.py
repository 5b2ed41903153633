"""Oddities of the text: how often text was left out, changed or doubtful, and where first.

Nothing in a text stops a preparation, and everything that is left out or changed is reported.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

ODDITIES = {
    "hidden": "hidden files and directories, left out",
    "binary": "binary files, left out",
    "linked": "links to directories or to nothing, left out",
    "unreadable": "files and directories that cannot be read, left out",
    "own_products": "prepared directories, runs and checkpoints, left out",
    "given_twice": "files given more than once, read once",
    "looks_like": "files that look like JSON, CSV or TSV but hold no records with text, "
    "read as plain text",
    "other_field": "files without a field 'text', read from their only field of strings",
    "not_utf8": "parts with invalid UTF-8, which became U+FFFD",
    "nul": "parts with NUL characters, kept: is this text?",
    "end_of_text": "parts with <|endoftext|> as text, kept: --doc-separator '<|endoftext|>' cuts "
    "text files there",
    "empty": "empty documents, left out",
    "no_separator": "text files in which --doc-separator does not occur, each one document",
    "long_lines": "stretches of 1 MiB without a line break, kept",
    "long_records": "JSON lines of over 32 MiB, left out",
    "bad_records": "lines that are not JSON, left out",
    "bad_rows": "rows of CSV or TSV that are malformed or do not fit their header, left out",
    "broken_json": "JSON files that are cut short, are malformed or have a record of over 32 MiB, "
    "read up to that place",
    "no_text": "records without text in the field that --text-field names, left out",
    "cut_blanks": "parts with more blanks in a row than the tokenizer takes, cut every 65,536",
    "cut_tokens": "places where a long document was cut inside a token, for lack of a better place",
}


def describe_oddities(counts: Mapping[str, int], first: Mapping[str, str]) -> Iterator[str]:
    """One line for each kind: the count, the consequence, and the place of the first."""
    for kind, meaning in ODDITIES.items():
        if count := counts.get(kind, 0):
            where = f" (first: {first[kind]})" if kind in first else ""
            yield f"{count:,} {meaning}{where}"


@dataclass
class Oddities:
    """Counts of the oddities of a text, and the place of the first of each kind."""

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

"""What was odd about a text, in words: nothing that is left out or changed goes unsaid."""

from collections.abc import Iterator, Mapping

KINDS = {
    "not_utf8": "parts with bytes that are no UTF-8, which became U+FFFD",
    "nul": "parts with NUL characters, kept: is this text?",
    "empty": "empty documents, left out",
    "long_lines": "stretches of 1 MiB without a line end, kept",
    "long_records": "JSON lines of over 32 MiB, left out",
    "bad_records": "lines that are no JSON, left out",
    "no_text": "records without text in the field that --text-field names, left out",
    "cut_blanks": "parts with more blanks in a row than the tokenizer takes, cut every 65,536",
    "cut_tokens": "places where a long document was cut within a token, for lack of a better one",
}


def describe(counts: Mapping[str, int], first: Mapping[str, str]) -> Iterator[str]:
    """One sentence a kind: how many, what became of them, where the first is."""
    for kind, meaning in KINDS.items():
        if count := counts.get(kind, 0):
            where = f" (first: {first[kind]})" if kind in first else ""
            yield f"{count:,} {meaning}{where}"

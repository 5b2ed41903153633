"""A table is read as its writer meant it, from every format; a damaged one is refused."""

import csv
import gzip
import io
import json
from collections.abc import Sequence

import pytest
import zstandard

from gptjax.base.errors import UserError
from gptjax.data.tables import read_table

ROWS = [
    {"label": "ham", "text": 'He said "lunch", twice'},
    {"label": "spam", "text": "line\nbreak; and, commas"},
    {"label": "ham", "text": "tab\there é"},
]


def written_by_csv(delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["label", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def parquet(names: Sequence[str] = ("label", "text")) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS).rename_columns(list(names)), out)
    return out.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FORMATS = {
    "a.csv": written_by_csv(","), "semicolons.csv": written_by_csv(";"), "nameless": LINES,
    "a.tsv": written_by_csv("\t"), "a.jsonl": LINES, "a.parquet": parquet(),
    "tabs.csv": written_by_csv("\t"),
    "a.json": json.dumps(ROWS).encode(), "long.json": json.dumps(ROWS, indent=1).encode(),
    "marked.csv": b"\xef\xbb\xbf" + written_by_csv(","), "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstandard.compress(LINES[:90]) + zstandard.compress(LINES[90:]),
    "lines.json": LINES, "array.jsonl": json.dumps(ROWS).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(FORMATS[name])
    table = read_table(path)
    assert table.rows == ROWS
    assert (set(table.columns), table.has_header) == ({"label", "text"}, True)


# text of the file, and the rows below the header as lists
MEANT = {
    "quotes of TSV are characters": ('ham\t"hello" he said\nspam\t"open\n',
                                     False, [["ham", '"hello" he said'], ["spam", '"open']]),
    "whole quoted texts too": ('ham\t"hello"\nspam\t"bye"\n', False,
                               [["ham", '"hello"'], ["spam", '"bye"']]),
    "doubled quotes are csv's": ('ham\t"say ""hi"""\nspam\tbye\n', False,
                                 [["ham", 'say "hi"'], ["spam", "bye"]]),
    "a label that comes again is no heading": ("ham\ta b\nspam\tc d\nham\te f\n", False,
                                               [["ham", "a b"], ["spam", "c d"], ["ham", "e f"]]),
    "a usual heading": ("class\tcontent\nham\ta b\n", True, [["ham", "a b"]]),
    "words of intents": ("intent\tutterance\n" + "".join(f"i{n % 20}\tu {n}\n" for n in range(60)),
                         True, [[f"i{n % 20}", f"u {n}"] for n in range(60)]),
    "more columns than names": ("v1\tv2\t\t\nham\ta\t\t\n", True, [["ham", "a", ""]]),
    "numbers of pandas": ("0\t1\nham\ta b\n", True, [["ham", "a b"]]),
    "an unusual word above a few": ("kind\twords\n" + "ham\ta\nspam\tb\n" * 4, True,
                                    [["ham", "a"], ["spam", "b"]] * 4),
    "a sentence above a few": ("eggs\tRed fox\n" + "ham\ta\nspam\tb\n" * 4, False,
                               [["eggs", "Red fox"], *[["ham", "a"], ["spam", "b"]] * 4]),
    "a class with the name of a heading": ("question\tIs it?\nother\ta\nquestion\tb\n", False,
                                           [["question", "Is it?"], ["other", "a"],
                                            ["question", "b"]]),
    "a word above numbers": ("stars\twords\n5\tgood\n1\tbad\n", True,
                             [["5", "good"], ["1", "bad"]]),
    "a number above numbers": ("5\tgood\n1\tbad\n", False, [["5", "good"], ["1", "bad"]]),
    "blank lines": ("ham\ta\n\nspam\tb\n", False, [["ham", "a"], ["spam", "b"]]),
    "lines of Windows": ("ham\ta\r\nspam\tb\r\n", False, [["ham", "a"], ["spam", "b"]]),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANT)
def test_a_table_without_a_standard_is_read_as_meant(name, tmp_path):
    text, has_header, rows = MEANT[name]
    path = tmp_path / "a.tsv"
    path.write_bytes(text.encode())
    table = read_table(path)
    assert table.has_header == has_header
    assert [list(row.values()) for row in table.rows] == rows
    turned = read_table(path, header=not has_header)
    assert len(turned.rows) == len(rows) + (1 if has_header else -1)


def test_a_known_class_makes_a_first_line_an_example(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(REFUSED["unclear.tsv"][0])
    assert len(read_table(path, classes=("ham", "spam")).rows) == 3
    assert len(read_table(path, named=("Text",)).rows) == 2


def test_a_row_knows_its_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('label,text\nham,"two\nlines"\n\nspam,c\n')
    assert read_table(path).places == ["line 2", "line 5"]


# name, content, and what the message must name
REFUSED = {
    "missing.tsv": (None, "does not exist"),
    "empty.tsv": (b" \n", "empty"),
    "header.csv": (b"label,text\n", "no example"),
    "third.jsonl": (b'{"a": 1}\n{"a": 2}\n{"a": \n{"a": 4}\n', "line 3"),
    "third.json": (b'[{"a": 1},\n{"a": 2},\n{"a": },\n{"a": 4}]', "line 3"),
    "cut.json": (b'[{"a": 1},\n{"a"', "line 2"),
    "number.jsonl": (b'{"a": 1}\n7\n', "line 2"),
    "object.json": (b'{"data": [\n{"a": 1}]}\n', "line 1"),
    "columns.tsv": (b"a\tb\nc\td\ne\tf\tg\n", "line 3"),
    "quotes.csv": (b'label,text\nham,"open\nspam,b\n', "line 2"),
    "latin.tsv": (b"a\tb\nc\tcaf\xe9\n", "line 2"),
    "unclear.tsv": (b"ham\tText\nspam\ta\nham\tb\n", "ham | Text. Give --data.header True"),
    "wide.tsv": ("ham\ta\n".encode("utf-16"), "UTF-16"),
    "deep.json": (b"[" * 10**5, "line 1"),
    "digits.json": (b'{"label": ' + b"1" * 5000 + b"}", "line 1"),
    "twice.parquet": (parquet(["label", "label"]), "'label'"),
    "twice.csv": (b"label,label\na,b\n", "'label'"),
    "a.zip": (b"PK\x03\x04....", "zip"),
    "cut.gz": (gzip.compress(LINES)[:40], "compressed"),
    "cut.zst": (zstandard.compress(LINES)[:20], "zst"),
    "a.parquet": (parquet()[:100], "Parquet"),
    "pointer.csv": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
    "none.json": (b"[]", "empty array"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_file_is_refused_with_its_name_and_line(name, tmp_path):
    content, hint = REFUSED[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert hint in str(caught.value)

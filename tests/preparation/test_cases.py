"""Files as people have them, in tests/cases: the right documents, and the right notes."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from gptjax.base.errors import UserError
from gptjax.config import Config, DataConfig, to_json
from gptjax.data.manifest import read_tokenizer
from gptjax.data.shards import open_shard
from gptjax.preparation import readers, units
from gptjax.preparation.oddities import ODDITIES, Oddities
from gptjax.preparation.pipeline import prepare_shards, prepare_with_progress
from gptjax.preparation.sources import find_inputs

CASES = ROOT / "tests" / "cases"
CONFIG = (CASES / "config.json").read_text()
TABLE = {
    "lines.json": (["a", "b"], {}),
    "c4.json.gz": (["first\npage", "second page"], {}),
    "lines_crlf.txt": (["one", "two", "three"], {"bad_records": 1, "no_text": 1}),
    "array.json": (["one", "two\nlines [x], {y}"], {"no_text": 1, "empty": 1}),
    "strings.json": (["one", "zwei ü", "🙂"], {}),
    "pretty.json": (["one", "two"], {"other_field": 1}),
    "broken.json": (["one", "two"], {"broken_json": 1}),
    "config.json": ([CONFIG], {"looks_like": 1}),
    "list.py": (["[print(i) for i in range(3)]\n"], {"looks_like": 1}),
    "quotes.csv": (
        ['a comma, and "quotes"', "two\r\nlines", "plain"],
        {"bad_rows": 1, "empty": 1},
    ),
    "semicolons.txt": (["one, two", "three"], {}),
    "only_strings.tsv": (['said "so" and went', "He said", '"unclosed'], {"other_field": 1}),
    "pipes.csv": (["one, two", "three"], {}),
    "prose.txt": (
        ["Dear Anna, dear Ben,\nit rained, it poured, we stayed,\nand so on.\n"],
        {},
    ),
    "words.txt": (["hello,bonjour\nbye,salut\nyes,oui\n"], {"looks_like": 1}),
    "letters_utf16le.txt": (["one ü\r\ntwo 🙂\r\n"], {}),
    "table_utf16be.csv": (["two\r\nlines", "漢字"], {}),
    "array_utf32.json.gz": (["漢", "b"], {}),
    "members.txt.gz": (["one\ntwo\nthree\n"], {}),
    "gzip_inside.txt": (["one", "two"], {}),
    "lines.dat.zst": (["one", "two"], {}),
    "nulls.parquet": (["one", "two"], {"no_text": 1, "empty": 1}),
    "folder": (
        ["kept\n", "kept\n", "kept too"],
        {"hidden": 1, "binary": 2, "linked": 2, "own_products": 3},
    ),
}


def read(
    given: Path | str, directory: Path, workers: int = 2, **options
) -> tuple[list[str], dict[str, int]]:
    """The documents that a preparation makes of a file, and its notes."""
    data = DataConfig(str(directory / "out"), "bytes", None, (str(given),), 0.0, **options)
    oddities = Oddities()
    manifest = prepare_shards(data, find_inputs(data, oddities), oddities=oddities, workers=workers)
    split, tokenizer = manifest.splits["train"], read_tokenizer(manifest)
    ids = [
        token
        for shard in split.shards
        for token in open_shard(
            manifest.directory / shard.name, shard.tokens, manifest.dtype, shard.layout
        ).tolist()
    ]
    texts, text = [], []
    for token in ids:
        if token == tokenizer.eot_id:
            texts.append(tokenizer.decode(text))
            text = []
        else:
            text.append(token)
    assert split.documents == len(texts)
    assert "not_utf8" in manifest.notes or split.bytes == len("".join(texts).encode())
    return texts, manifest.notes


def test_every_case_is_tried():
    assert sorted(TABLE) == sorted(path.name for path in CASES.iterdir())


@pytest.mark.parametrize("name", TABLE)
def test_a_file_is_read_for_what_it_is(tmp_path: Path, name: str):
    assert read(CASES / name, tmp_path) == TABLE[name]


@pytest.mark.parametrize("name", sorted(set(TABLE) - {"folder", "nulls.parquet"}))
def test_a_file_is_read_for_what_it_is_whatever_its_name(tmp_path: Path, name: str):
    (tmp_path / "anything").write_bytes((CASES / name).read_bytes())
    texts, notes = TABLE[name]
    if name == "broken.json":  # which nothing but its name made JSON
        texts, notes = [(CASES / name).read_text()], {"looks_like": 1}
    assert read(tmp_path / "anything", tmp_path) == (texts, notes)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("lines.json", "jsonl"), ("lines.json", "json"), ("array.json", "json"),
        ("quotes.csv", "csv"), ("pipes.csv", "csv"), ("table_utf16be.csv", "tsv"),
        ("only_strings.tsv", "tsv"), ("nulls.parquet", "parquet"),
    ],
)  # fmt: skip
def test_a_format_that_is_named_is_taken(tmp_path: Path, name: str, form: str):
    assert read(CASES / name, tmp_path, input_format=form) == TABLE[name]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("prose.txt", "csv"), ("prose.txt", "tsv"), ("prose.txt", "json"), ("list.py", "jsonl"),
        ("array.json", "jsonl"), ("quotes.csv", "tsv"), ("quotes.csv", "json"),
    ],
)  # fmt: skip
def test_a_format_that_a_file_does_not_have_is_refused(tmp_path: Path, name: str, form: str):
    with pytest.raises(UserError, match=f"{name} is not {form}: it begins with"):
        read(CASES / name, tmp_path, input_format=form)
    assert list(tmp_path.iterdir()) == []


def test_text_is_what_format_says_is_text(tmp_path: Path):
    raw = (CASES / "lines.json").read_text()
    assert read(CASES / "lines.json", tmp_path, input_format="text") == ([raw], {})


NO_TEXT = {
    "twice.gz": gzip.compress(gzip.compress(b"text")),
    "a.xz": lzma.compress(b"text"),
    "a.bz2": bz2.compress(b"text"),
    "a.docx": b"PK\x03\x04\x14\x00word/document.xml",
    "a.tar.gz": gzip.compress(b"a.txt".ljust(257, b"\0") + b"ustar"),
    "a.pdf": b"%PDF-1.4\n1 0 obj\n",
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_packed_files_are_no_text(tmp_path: Path, name: str):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(NO_TEXT[name])
    (tmp_path / "in" / "a.txt").write_text("text")
    with pytest.raises(UserError, match=f"{name} is an? .*, expected text"):
        read(tmp_path / "in" / name, tmp_path)
    assert read(tmp_path / "in", tmp_path) == (["text"], {"binary": 1})


@pytest.mark.parametrize(
    ("raw", "texts"),
    [
        ('id, text\n1, "a, b"\n2, c\n', ["a, b", "c"]),
        ("id; text\n1; a\n2; c\n", ["a", "c"]),
        ("id,text\n1, a\n2, c\n", [" a", " c"]),
    ],
)
def test_a_blank_after_the_delimiter_is_no_text_where_the_header_has_it(
    tmp_path: Path, raw: str, texts: list[str]
):
    (tmp_path / "a.csv").write_text(raw)
    assert read(tmp_path / "a.csv", tmp_path) == (texts, {})


def test_a_quote_left_open_is_said_to_take_many_lines(tmp_path: Path):
    rows = [f'{i},"t {i}"' for i in range(150)]
    (tmp_path / "a.csv").write_text("\n".join(["id,text", *rows, '9,"open', "10,b", "11,c"]))
    oddities = Oddities()
    data = DataConfig(str(tmp_path / "out"), inputs=(str(tmp_path / "a.csv"),), val_fraction=0.0)
    prepare_shards(data, find_inputs(data), oddities=oddities, workers=1)
    assert oddities.first["bad_rows"].endswith("line 152 to 154")


def test_a_mark_between_documents_that_no_separator_names_is_noted(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    assert read(tmp_path / "a.txt", tmp_path / "1")[1] == {"end_of_text": 1}
    cut = read(tmp_path / "a.txt", tmp_path / "2", doc_separator="<|endoftext|>")
    assert cut == (["one", "two"], {})


def test_documents_of_one_byte_are_trained_on(tmp_path: Path):
    path = CASES / "lines.json"
    data = DataConfig(str(tmp_path / "out"), inputs=(str(path),), val_fraction=0.05)
    assert prepare_shards(data, find_inputs(data), workers=1).splits["train"].documents == 2


ROWS = ["one", 'two, "so"\n\nlines', "", "drei ü 漢"] * 60
WRITTEN = {
    "json": lambda file: json.dump([{"text": text} for text in ROWS], file),
    "csv": lambda file: csv.writer(file).writerows([["text", "n"], *([t, 1] for t in ROWS)]),
}


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("workers", [1, 3])
def test_arrays_and_tables_are_read_in_small_pieces_by_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, workers: int
):
    monkeypatch.setattr(readers, "READ_BYTES", 7)
    monkeypatch.setattr(units, "SMALLEST_UNIT", 500)
    for name in "ab":
        with (tmp_path / name).open("w", newline="") as file:
            WRITTEN[form](file)
    texts, notes = read(tmp_path / "[ab]", tmp_path, workers=workers)
    assert texts == [text for text in ROWS if text] * 2
    assert notes == {"empty": 120}


@pytest.mark.parametrize(("form", "note"), [("json", "broken_json"), ("csv", "bad_rows")])
def test_a_record_that_memory_should_not_hold_is_left_out_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, note: str
):
    monkeypatch.setattr(readers, "READ_BYTES", 64)
    monkeypatch.setattr(readers, "RECORD_BYTES", 4000)
    monkeypatch.setattr("test_cases.ROWS", [*ROWS, "x" * 9000, "last"])
    with (tmp_path / f"a.{form}").open("w", newline="") as file:
        WRITTEN[form](file)
    texts, notes = read(tmp_path / f"a.{form}", tmp_path)
    assert texts[:180] == [text for text in ROWS[:240] if text]
    assert notes[note] >= 1


def parquet(table: dict) -> bytes:
    pq.write_table(pa.table(table), sink := io.BytesIO())
    return sink.getvalue()


AS_FILES = {
    "a.jsonl": b'{"n": 1, "title": "t", "body": "b"}\n',
    "a.json": b'[{"n": 1, "title": "t", "body": "b"}]',
    "a.csv": b"n,title,body\n1,t,b\n",
    "a.tsv": b"n\ttitle\tbody\n1\tt\tb\n",
    "a.parquet": parquet({"n": [1], "title": ["t"], "body": ["b"]}),
}


@pytest.mark.parametrize("name", AS_FILES)
def test_the_field_is_the_one_given_or_is_asked_for(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(AS_FILES[name])
    assert read(path, tmp_path / "1", text_field="body") == (["b"], {})
    for given, missing in ((None, "text"), ("author", "author")):
        says = f"has no field '{missing}'; its fields.* are n, title, body: name the one"
        with pytest.raises(UserError, match=says):
            read(path, tmp_path, text_field=given)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["1", name])


def test_what_is_odd_is_said_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture):
    inputs = tuple(str(CASES / name) for name in ("folder", "pretty.json", "words.txt"))
    prepare_with_progress(DataConfig(str(tmp_path / "out"), "bytes", None, inputs, 0.0))
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    expected = ["hidden", "binary", "linked", "own_products", "looks_like", "other_field"]
    assert [kind for kind, line in zip(expected, notes, strict=True) if ODDITIES[kind] in line] == (
        expected
    )
    assert notes[-1].endswith(f"(first: {CASES / 'pretty.json'}: body)")


def test_a_damaged_line_makes_json_lines_nothing_else(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"text": "a"}\n{"text": "b\n{"text": "c"}\n')
    assert read(tmp_path / "a.json", tmp_path) == (["a", "c"], {"bad_records": 1})


def test_a_damaged_header_makes_a_table_text(tmp_path: Path):
    (tmp_path / "a.csv").write_text('"a"b\n')
    assert read(tmp_path / "a.csv", tmp_path) == (['"a"b\n'], {"looks_like": 1})


def test_a_list_of_strings_is_no_text_of_parquet(tmp_path: Path):
    raw = parquet({"tags": [["t"]], "body": pa.array(["b"]).dictionary_encode()})
    (tmp_path / "a").write_bytes(raw)
    assert read(tmp_path / "a", tmp_path) == (["b"], {"other_field": 1})


def test_a_table_without_a_header_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text('"3","a title","a text"\n"4","another","b text"\n')
    with pytest.raises(UserError, match=r"a.csv has no header: its first row is 3, a title"):
        read(tmp_path / "a.csv", tmp_path)


def test_a_compressed_table_from_standard_input_is_read_for_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    raw = (CASES / "gzip_inside.txt").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
    assert read("-", tmp_path) == (["one", "two"], {})


def test_what_is_no_utf16_becomes_a_mark_and_is_counted(tmp_path: Path):
    (tmp_path / "a").write_bytes("\ufeffab\ud800c".encode("utf-16-le", "surrogatepass") + b"x")
    assert read(tmp_path / "a", tmp_path) == (["ab\ufffdc\ufffd"], {"not_utf8": 1})


def test_a_walk_leaves_out_what_gptjax_made_and_a_product_alone_is_no_text(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    data = DataConfig(str(tmp_path / "in" / "data"), "bytes", None, (str(tmp_path / "in"),), 0.0)
    assert prepare_shards(data, find_inputs(data)).notes == {}  # nor is what it makes itself
    for made in (tmp_path / "in" / "run", tmp_path / "in" / "checkpoints" / "5"):
        made.mkdir(parents=True)
        (made / "log.txt").write_text("step 1")
    (tmp_path / "in" / "run" / "config.json").write_text(to_json(Config()))
    (tmp_path / "in" / "checkpoints" / "5" / "_CHECKPOINT_METADATA").write_text("{}")
    for number, given in enumerate(("in", "in/**/*", "i*")):
        made = read(tmp_path / given, tmp_path / str(number))
        assert made == (["text"], {"own_products": 3}), given
    with pytest.raises(UserError, match=r"no such text file.*1 prepared directories, runs"):
        read(tmp_path / "in" / "run", tmp_path)

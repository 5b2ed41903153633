"""Files as people have them, in tests/cases: the right documents, and the right notes."""

from pathlib import Path

import pytest
from conftest import ROOT

from gptjax.base.errors import UserError
from gptjax.config import DataConfig
from gptjax.data.manifest import read_tokenizer
from gptjax.data.shards import open_shard
from gptjax.preparation.oddities import Oddities
from gptjax.preparation.pipeline import prepare_shards
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


def read(given: Path, directory: Path, **options) -> tuple[list[str], dict[str, int]]:
    """The documents that a preparation makes of a file, and its notes."""
    data = DataConfig(str(directory / "out"), "bytes", None, (str(given),), 0.0, **options)
    oddities = Oddities()
    manifest = prepare_shards(data, find_inputs(data, oddities), oddities=oddities)
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
    assert split.bytes == sum(len(text.encode()) for text in texts)
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
    with pytest.raises(UserError, match=f"{name} is no {form}: it begins with"):
        read(CASES / name, tmp_path, input_format=form)
    assert list(tmp_path.iterdir()) == []


def test_text_is_what_format_says_is_text(tmp_path: Path):
    raw = (CASES / "lines.json").read_text()
    assert read(CASES / "lines.json", tmp_path, input_format="text") == ([raw], {})

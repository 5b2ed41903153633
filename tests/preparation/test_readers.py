"""Text has the same documents however it is stored; its faults are counted and reported."""

import dataclasses
import gzip
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import run_verb
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptjax.base.errors import ConfigError, UserError
from gptjax.config import DataConfig
from gptjax.data.manifest import Manifest, read_tokenizer
from gptjax.preparation import documents, readers, units
from gptjax.preparation.documents import Document
from gptjax.preparation.oddities import Oddities, describe_oddities
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.readers import read_passages
from gptjax.preparation.recognition import recognise_input
from gptjax.preparation.scanning import Digest, Scan, scan
from gptjax.preparation.sources import Input, find_inputs
from gptjax.preparation.units import Partition, find_units
from gptjax.tokenizers.bpe import GPT2_PATTERN, BPETokenizer, train_bpe

TEXTS = [f"{i:03d} the sea {'shells ' * (i * 7 % 90)}\n漢字 🙂\n" for i in range(60)]
TEXTS[17] = "a long one: " + "she sells sea shells\n" * 400
SEPARATOR = "<|end|>"


def write_text(directory: Path, texts: list[str]) -> list[Path]:
    paths = [directory / f"{i:04d}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    return paths


def lines_of(texts: list[str]) -> bytes:
    return "".join(json.dumps({"n": i, "text": t}) + "\n" for i, t in enumerate(texts)).encode()


def write_jsonl(directory: Path, texts: list[str]) -> list[Path]:
    (directory / "all.jsonl").write_bytes(lines_of(texts))
    return [directory / "all.jsonl"]


def write_parquet(directory: Path, texts: list[str]) -> list[Path]:
    table = pa.table({"n": list(range(len(texts))), "text": texts})
    pq.write_table(table, directory / "all.parquet", row_group_size=7)
    return [directory / "all.parquet"]


def write_gzip(directory: Path, texts: list[str]) -> list[Path]:
    paths = write_text(directory, texts)
    packed = [path.with_suffix(".txt.gz") for path in paths]
    for path, target in zip(paths, packed, strict=True):
        target.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return packed


def write_jsonl_gzip(directory: Path, texts: list[str]) -> list[Path]:
    (directory / "all.jsonl.gz").write_bytes(gzip.compress(lines_of(texts)))
    return [directory / "all.jsonl.gz"]


def write_jsonl_zstd(directory: Path, texts: list[str]) -> list[Path]:
    raw, half = lines_of(texts), lines_of(texts[:20])
    paths = [directory / "a.jsonl.zst", directory / "b.ndjson.zst"]
    paths[0].write_bytes(zstandard.compress(half))
    paths[1].write_bytes(zstandard.compress(raw[len(half) :]))
    return paths


def write_separated(directory: Path, texts: list[str]) -> list[Path]:
    (directory / "all.txt").write_bytes(SEPARATOR.join([*texts, ""]).encode())
    return [directory / "all.txt"]


def write_directory(directory: Path, texts: list[str]) -> list[Path]:
    write_text(directory, texts)
    (directory / ".hidden").write_text("not this")
    (directory / "picture.png").write_bytes(b"\x89PNG\0\0")
    return [directory]


def write_pattern(directory: Path, texts: list[str]) -> list[Path]:
    write_text(directory, texts)
    (directory / "0000.md").write_text("not this")
    return [directory / "*.txt"]


FORMS = {
    "text": write_text,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "gz": write_gzip,
    "jsonl.gz": write_jsonl_gzip,
    "jsonl.zst": write_jsonl_zstd,
    "separated": write_separated,
    "directory": write_directory,
    "pattern": write_pattern,
}


def prepare_as(form: str, texts: list[str], directory: Path, **changes: object) -> Manifest:
    """Store texts in one of the forms and prepare them."""
    (directory / "in").mkdir(parents=True)
    paths = FORMS[form](directory / "in", texts)
    data = DataConfig(str(directory / "out"), "bytes", None, tuple(map(str, paths)), 0.1)
    if form == "separated":
        changes["doc_separator"] = SEPARATOR
    data = dataclasses.replace(data, **changes)
    return prepare_shards(data, find_inputs(data), shard_tokens=5000)


def without_source(manifest: Manifest) -> str:
    table = json.loads((manifest.directory / "manifest.json").read_text())
    assert table.pop("source")
    return json.dumps(table)


def shards(manifest: Manifest) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in manifest.directory.iterdir() if p.suffix == ".bin"}


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch):
    """Many parts a document and many units a file, as in a large corpus."""
    monkeypatch.setattr(documents, "PART_BYTES", 200)
    monkeypatch.setattr(units, "SMALLEST_UNIT", 1000)
    monkeypatch.setattr(readers, "READ_BYTES", 64)


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("count", [60, 3], ids=["by hash", "ends held out"])
def test_the_same_documents_give_the_same_bytes_however_they_are_stored(tmp_path: Path, count: int):
    texts = TEXTS[15 : 15 + count] if count < 60 else TEXTS
    expected = prepare_as("text", texts, tmp_path / "text")
    assert expected.splits["train"].documents == (count if count < 60 else 60 - 6)
    for form in FORMS:
        made = prepare_as(form, texts, tmp_path / f"as {form}")
        assert (form, without_source(made)) == (form, without_source(expected))
        assert shards(made) == shards(expected)
        assert sorted(p.name for p in made.directory.parent.iterdir()) == ["in", "out"]


def test_standard_input_is_a_text_or_what_format_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = prepare_as("separated", TEXTS, tmp_path / "file")
    for form, raw in {
        "text": (tmp_path / "file" / "in" / "all.txt").read_bytes(),
        "jsonl": lines_of(TEXTS),
    }.items():
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
        out = str(tmp_path / form)
        data = DataConfig(out, "bytes", None, ("-",), 0.1, form, doc_separator=SEPARATOR)
        made = prepare_shards(data, find_inputs(data), shard_tokens=5000)
        assert shards(made) == shards(expected)
        assert made.source == "standard input"


def passages(source: Input) -> tuple[list[bytes], Oddities]:
    notes = Oddities()
    found = [
        passage.document.read(0, passage.document.size)
        for unit in find_units([source])
        for span in unit
        for passage in read_passages(span, notes)
    ]
    return found, notes


# texts of any characters, halves of surrogate pairs among them
ANY_TEXT = st.text(alphabet=st.characters(codec=None), max_size=40) | st.sampled_from(
    ["", "\0", "\ufeff", "🙂" * 50, "\ud800", "a\n" * 400, " " * 300, "<|endoftext|>", "\r\n\n \n"]
)


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(["the sea the shells \n\n 漢字 🙂 " * 20], 270)


@example(texts=["\ud83d\ude42", "", "\ud83d", "x" * 5000, "\0\0"], form="jsonl", val=0.5)
@example(texts=["é" * 900 + " \u3000 \n" * 300], form="parquet", val=0.3)
@given(
    texts=st.lists(ANY_TEXT, min_size=1, max_size=12),
    form=st.sampled_from(["text", "jsonl", "parquet", "jsonl.gz"]),
    val=st.sampled_from([0.0, 0.1, 0.5]),
)
@settings(deadline=None, derandomize=True, max_examples=40)
def test_any_documents_come_back_and_every_token_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, bpe, texts: list[str], form: str, val: float
):
    if form in ("text", "parquet"):  # neither can hold what has no UTF-8
        texts = [t.encode("utf-8", "replace").decode() for t in texts]
    directory = tmp_path_factory.mktemp("any")
    clean = [documents_text(t) for t in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PART_BYTES", 64)
        patch.setattr(units, "SMALLEST_UNIT", 128)
        patch.setattr("gptjax.preparation.workspace.make_tokenizer", lambda name: bpe)
        if not any(clean):
            with pytest.raises(UserError, match="there is no text"):
                prepare_as(form, texts, directory, tokenizer="gpt2", val_fraction=val)
            return
        made = prepare_as(form, texts, directory, tokenizer="gpt2", val_fraction=val)
    kept = [t for t in clean if t]
    assert made.notes.get("empty", 0) == len(clean) - len(kept)
    assert sum(s.bytes for s in made.splits.values()) == sum(len(t.encode()) for t in kept)
    decoded: dict[str, list[str]] = {}
    for split, listed in made.splits.items():
        names = [s.name for s in listed.shards]
        raw = b"".join((made.directory / name).read_bytes()[1024:] for name in names)
        tokens = np.frombuffer(raw, "<u2")
        ends = np.flatnonzero(tokens == bpe.eot_id)
        assert len(tokens) == listed.tokens == sum(s.tokens for s in listed.shards)
        assert len(ends) == listed.documents
        pieces = np.split(tokens, ends + 1)
        assert len(pieces.pop()) == 0
        decoded[split] = [read_tokenizer(made).decode(p[:-1].tolist()) for p in pieces]
    kept = [t.removeprefix("\ufeff") for t in kept]
    if len(decoded["train"]) + len(decoded["val"]) == len(kept):
        assert sorted(decoded["train"] + decoded["val"]) == sorted(kept)
    # by hash, or each in two parts: nothing is lost either way
    joined = "".join(sorted("".join(decoded["train"] + decoded["val"])))
    assert joined == "".join(sorted("".join(kept)))


def documents_text(text: str) -> str:
    """What a document of this text holds: halves of surrogate pairs became U+FFFD."""
    paired = json.loads(json.dumps(text))
    return "".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in paired)


def test_what_cannot_be_read_is_left_out_counted_and_located(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(readers, "RECORD_BYTES", 200)
    monkeypatch.setattr(documents, "PART_BYTES", 100)
    monkeypatch.setattr("gptjax.preparation.scanning.PART_BYTES", 100)
    lines = [
        b'{"text": "good"}',
        b'{"text": ""}',
        b"not json",
        b'{"text": 5}',
        b'["text"]',
        b'{"body": "elsewhere"}',
        b"[" * 150,
        b'{"text": "' + b"x" * 500 + b'"}',
        b"",
        b'{"text": "bad \xff byte"}',
        b'{"text": "half \\ud800 pair"}',
        b'{"text": "nul \\u0000"}',
        b'{"text": "' + b"y" * 150 + b'"}',
        b'{"text": "last, no line end"}',
    ]
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b"\n".join(lines))
    found, notes = passages(Input(path, "jsonl"))
    assert found[0] == b"good"
    assert found[1:3] == ["bad \ufffd byte".encode(), "half \ufffd pair".encode()]
    assert found[-1] == b"last, no line end"
    assert len(found) == 6
    counts = {"bad_records": 2, "no_text": 3, "empty": 1, "long_records": 1, "not_utf8": 2}
    assert notes.counts == counts
    assert notes.first["no_text"] == f"{path}, byte {sum(map(len, lines[:3])) + 3} (it has text)"
    total = Scan()
    for unit in find_units([Input(path, "jsonl")]):
        total.merge(scan(unit, 0.1))
    assert total.oddities.counts == {**counts, "nul": 1, "long_lines": 1}
    said = list(describe_oddities(total.oddities.counts, total.oddities.first))
    assert len(said) == 7
    assert all(str(path) in sentence for sentence in said)
    data = DataConfig(str(tmp_path / "out"), "bytes", None, (str(path),), 0.1)
    assert prepare_shards(data, find_inputs(data)).notes == total.oddities.counts


def test_rows_without_text_are_counted_and_a_missing_column_is_named(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"body": ["one", None, "", "two"], "raw": [b"1", b"\xff", b"", b"2"]}), path
    )
    found, notes = passages(Input(path, "parquet", "body"))
    assert (found, notes.counts) == ([b"one", b"two"], {"no_text": 1, "empty": 1})
    found, notes = passages(Input(path, "parquet", "raw"))
    assert (found[1], notes.counts) == (b"\xff", {"empty": 1})  # as in a text file
    with pytest.raises(UserError, match="no field 'text'; its fields are body, raw"):
        recognise_input(Input(path, "parquet", None), Oddities())


def test_text_in_parquet_may_be_of_any_type_and_need_not_be_utf8(tmp_path: Path):
    raw = [b"one two", "漢字".encode(), b"\xff\xfe broken \xe6\xbc", None]
    stored = pa.array(raw, pa.binary())
    offsets, content = stored.buffers()[1:]
    unchecked = pa.Array.from_buffers(pa.string(), 4, [stored.buffers()[0], offsets, content])
    kinds = {"binary": stored, "string": unchecked, "dictionary": unchecked.dictionary_encode()}
    for name, column in {**kinds, "view": stored.cast(pa.binary_view())}.items():
        pq.write_table(pa.table({"text": column}), tmp_path / f"{name}.parquet")
        found, notes = passages(Input(tmp_path / f"{name}.parquet", "parquet"))
        assert found == raw[:3], name
        assert notes.counts == {"no_text": 1}
        seen = scan(find_units([Input(tmp_path / f"{name}.parquet", "parquet")])[0], 0.0)
        assert seen.oddities.counts == {"no_text": 1, "not_utf8": 1}
    pq.write_table(pa.table({"text": stored[:0]}), tmp_path / "none.parquet")
    data = DataConfig(str(tmp_path / "out"), "bytes", None, (str(tmp_path / "none.parquet"),))
    with pytest.raises(UserError, match="no text in the input: no document at all"):
        prepare_shards(data, find_inputs(data))


@pytest.mark.parametrize("separator", ["\\n\\n", "---", "aa", "<|end|>"])
@pytest.mark.usefixtures("small_units")
def test_separators_are_found_wherever_a_file_is_cut(tmp_path: Path, separator: str):
    real = separator.replace("\\n", "\n")
    text = ("a" * 7 + real + "one" + real * 3 + "two-\n" * 30 + real + "-" * 5) * 40
    (tmp_path / "a.txt").write_text(text)
    found, notes = passages(Input(tmp_path / "a.txt", separator=separator))
    expected = text.split(real)
    assert [d.decode() for d in found] == [t for t in expected if t]
    empty = expected[:-1].count("")  # after the last separator there need be nothing
    assert notes.counts.get("empty", 0) == empty


def test_a_text_of_more_blanks_than_the_tokenizer_takes_is_cut_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Fragile(type(train_bpe(["a b"], 257))):
        def encode(self, text: str) -> np.ndarray:
            if " " * 100_000 in text:
                raise ValueError("backtracking limit")
            return super().encode(text)

    made = Fragile("gpt2", {bytes([b]): b for b in range(256)})
    monkeypatch.setattr("gptjax.preparation.workspace.make_tokenizer", lambda name: made)
    text = "one" + " " * 250_000 + "two\n" * 9
    manifest = prepare_as("text", [text], tmp_path, tokenizer="gpt2", val_fraction=0.0)
    assert manifest.notes == {"cut_blanks": 1}
    raw = b"".join(shards(manifest)[s.name][1024:] for s in manifest.splits["train"].shards)
    assert read_tokenizer(manifest).decode(np.frombuffer(raw, "<u2").tolist()) == text


@given(
    parts=st.lists(st.tuples(st.binary(max_size=3), st.booleans()), max_size=9),
    at=st.integers(0, 9),
)
@settings(deadline=None, derandomize=True)
def test_digests_join_wherever_the_parts_are_divided(parts: list[tuple[bytes, bool]], at: int):
    def of(some: list[tuple[bytes, bool]]) -> Digest:
        digest = Digest()
        for part, ends in some:
            digest = digest.add(part, ends)
        return digest

    assert of(parts[:at]).then(of(parts[at:])) == of(parts)
    assert len({of(p).text for p in (parts, [*parts, (b"", True)], [*parts, (b"", False)])}) == 3
    if parts and parts != parts[::-1]:
        assert of(parts) != of(parts[::-1])


def test_a_partition_is_read_or_refused():
    assert [[n for n in range(7) if Partition.parse(f"{i}/3").has(n)] for i in range(3)] == [
        [0, 3, 6], [1, 4], [2, 5],
    ]  # fmt: skip
    for text in ("3/3", "-1/3", "1", "a/b", "0/0", "", "/"):
        with pytest.raises(ConfigError, match="must be i/n"):
            Partition.parse(text)


def test_unpacked_files_are_cut_short_or_damaged_and_said_to_be(tmp_path: Path):
    for form, suffix in (("gz", "*.gz"), ("jsonl.zst", "*.zst")):
        (tmp_path / form).mkdir()
        FORMS[form](tmp_path / form, TEXTS[17:18] * 21)
        path = sorted((tmp_path / form).glob(suffix))[0]
        path.write_bytes(path.read_bytes()[:-20])
        data = DataConfig(str(tmp_path / "out"), "bytes", None, (str(path),), 0.1)
        with pytest.raises(UserError, match="cannot be unpacked"):
            prepare_shards(data, find_inputs(data))
        assert not (tmp_path / "out").exists()


def test_the_command_line_reads_json_lines_and_says_what_was_odd(tmp_path: Path):
    lines = lines_of(TEXTS).replace(b'"text"', b'"title": "a", "body"')
    (tmp_path / "a.jsonl").write_bytes(lines + b"oops\n")
    arguments = ["--input", "a.jsonl", "--out", "out", "--workers", 2]
    done = run_verb("prepare", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "its fields are n, title, body: name the one with the text" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl"]
    done = run_verb("prepare", *arguments, "--text-field", "body", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    where = (tmp_path / "a.jsonl").stat().st_size - len("oops\n")
    assert (
        f"note: 1 lines that are not JSON, left out (first: a.jsonl, byte {where})" in done.stdout
    )
    assert "from 56 documents" in done.stdout


def test_a_document_cut_within_tokens_is_counted_where_its_tokenizer_has_no_place_for_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By units and workers, of one document; and none is counted where nothing is cut in two."""
    monkeypatch.setattr(documents, "PART_BYTES", 100)
    monkeypatch.setattr("gptjax.preparation.units.SMALLEST_UNIT", 1000)
    ranks = {bytes([b]): b for b in range(256)} | {b" t": 256, b"e ": 257}
    text = "to the sea " * 700
    found = {}
    for name, pattern in (("known", GPT2_PATTERN), ("unknown", r"[\s\S]+")):
        made = BPETokenizer("gpt2", ranks, pattern)
        monkeypatch.setattr(
            "gptjax.preparation.workspace.make_tokenizer", lambda name, made=made: made
        )
        (tmp_path / name).mkdir()
        manifest = prepare_as("text", [text], tmp_path / name, tokenizer="gpt2", val_fraction=0.0)
        raw = b"".join(shards(manifest)[s.name][1024:] for s in manifest.splits["train"].shards)
        ids = np.frombuffer(raw, "<u2")[:-1].tolist()
        found[name] = manifest.notes.get("cut_tokens", 0), ids == made.encode(text).tolist()
    parts = [*Document("", "", len(text), text.encode()).parts(0, len(text))]
    cut = sum(part.endswith(b"the") for part in parts[:-1])
    assert found == {"known": (0, True), "unknown": (cut, False)}
    assert cut > 9


@pytest.mark.parametrize(
    ("text", "separator", "found"),
    [
        ("a\r\n\r\nb", "\\n\\n", r", which has '\r\n\r\n'"),
        ("a\n\nb", "\\r\\n\\r\\n", r", which has '\n\n'"),
        ("a\r\nb", "\n", None),
        ("a<|endoftext|>b", "<|endoftext|>\\n", ", which has '<|endoftext|>'"),
        ("a\n\nb", "---", r", which has '\n\n'"),
        ("a b", "---", ""),
    ],
)
def test_a_separator_that_does_not_occur_is_said_with_what_does(
    tmp_path: Path, text: str, separator: str, found: str | None
):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    documents, notes = passages(Input(path, separator=separator))
    said = None if found is None else f"{path}{found}"
    assert notes.first.get("no_separator") == said
    assert len(documents) == (2 if found is None else 1)
    if found:  # what is said can be given
        again = found.split("'")[1]
        documents, notes = passages(Input(path, separator=again))
        assert (len(documents), notes.first) == (2, {})

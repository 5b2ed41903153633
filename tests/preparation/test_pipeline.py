"""Prepared shards hold every token of every document, whole or not at all, in bounded memory."""

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_verb

from gptjax.base.errors import ConfigError, UserError
from gptjax.cli import ConfigCommand, parse_config
from gptjax.config import DataConfig
from gptjax.config.presets import load_config
from gptjax.data.manifest import Manifest, read_manifest, read_tokenizer
from gptjax.preparation import documents, workspace
from gptjax.preparation.oddities import Oddities
from gptjax.preparation.pipeline import how_to_prepare, prepare_shards
from gptjax.preparation.sources import find_inputs, text_files
from gptjax.preparation.workspace import locked_workspace, store_plain_files
from gptjax.prepare import prepare
from gptjax.tokenizers.bpe import BPETokenizer
from gptjax.tokenizers.plain import ByteTokenizer, Tokenizer

SHARD = 1000
# every pair of bytes has an id: the smallest natural table that needs uint32
PAIRS = {bytes([b]): b for b in range(256)} | {
    bytes([a, b]): 256 * (a + 1) + b for a in range(256) for b in range(256)
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """120 different documents of 6 to 9,000 bytes."""
    words = ["sea", "shells ", "\n", "\r\n", "漢字 ", "🙂", "  the", "\0", "<|endoftext|>", "'ll"]
    picks = np.random.default_rng(0).integers(len(words), size=(120, 2000))
    lengths = [2000 if i % 40 == 7 else i for i in range(120)]
    return [f"{i:06d}" + "".join(words[j] for j in picks[i, :n]) for i, n in enumerate(lengths)]


@pytest.fixture
def data(texts: list[str], tmp_path: Path) -> DataConfig:
    """Says to prepare `texts` as bytes into `out`."""
    (tmp_path / "text").mkdir()
    paths = [tmp_path / "text" / f"{i:03d}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    return DataConfig(str(tmp_path / "out"), "bytes", None, tuple(map(str, paths)), 0.1)


def prepared_from(data: DataConfig, shard_tokens: int = SHARD) -> Manifest:
    return prepare_shards(data, find_inputs(data), shard_tokens=shard_tokens)


def stream(manifest: Manifest, split: str) -> np.ndarray:
    """All tokens of a split, read without gptjax's reader."""
    files = [manifest.directory / shard.name for shard in manifest.splits[split].shards]
    parts = [
        np.fromfile(f, "<u2" if manifest.dtype == "uint16" else "<u4", -1, "", 1024) for f in files
    ]
    return np.concatenate([np.zeros(0, np.uint16), *parts])


def documents_in(tokens: np.ndarray, eot: int) -> list[list[int]]:
    """What lies before each end-of-text; nothing may follow the last."""
    ends = np.flatnonzero(tokens == eot)
    assert ends[-1] == len(tokens) - 1
    return [part[:-1].tolist() for part in np.split(tokens, ends + 1)[:-1]]


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in directory.iterdir()}


def refuse(name: str) -> Tokenizer:
    raise AssertionError(f"tokenised again with {name}")


@pytest.mark.parametrize(
    ("name", "dtype"), [("bytes", "uint16"), ("bpe:280", "uint16"), ("gpt2", "uint32")]
)
def test_every_token_of_every_document_is_there_in_order_and_closed(
    data: DataConfig, texts: list[str], monkeypatch: pytest.MonkeyPatch, name: str, dtype: str
):
    monkeypatch.setattr(documents, "PART_BYTES", 500)
    if name == "gpt2":
        monkeypatch.setattr(workspace, "make_tokenizer", lambda name: BPETokenizer(name, PAIRS))
    manifest = prepared_from(dataclasses.replace(data, tokenizer=name))
    tokenizer = read_tokenizer(manifest)
    assert (manifest.dtype, manifest.tokenizer) == (dtype, name)
    assert manifest.n_vocab == tokenizer.n_vocab
    found = {
        split: documents_in(stream(manifest, split), tokenizer.eot_id) for split in ("train", "val")
    }
    for split, split_documents in found.items():
        listed = manifest.splits[split]
        numbers = [int(tokenizer.decode(ids)[:6]) for ids in split_documents]
        assert numbers == sorted(numbers)
        assert split_documents == [tokenizer.encode(texts[i]).tolist() for i in numbers]
        assert listed.documents == len(numbers)
        assert listed.bytes == sum(len(texts[i].encode()) for i in numbers)
        assert listed.tokens == sum(map(len, split_documents)) + len(numbers)
    everything = [tuple(ids) for split in found.values() for ids in split]
    assert len(set(everything)) == len(everything) == len(texts)
    assert 0 < len(found["val"]) < 40
    if name == "bytes":
        joined = [list(text.encode()) for text in texts]
        assert sorted(found["train"] + found["val"]) == sorted(joined)


def test_shards_are_of_one_size_but_the_last_and_hashed_and_nothing_else_is_there(data: DataConfig):
    manifest = prepared_from(data)
    names = ["manifest.json", "tokenizer.json"]
    for split, listed in manifest.splits.items():
        shards = listed.shards
        names += [f"{split}_{i:06d}.bin" for i in range(len(shards))]
        assert [s.tokens for s in shards[:-1]] == [SHARD] * (len(shards) - 1)
        assert SHARD <= shards[-1].tokens < 2 * SHARD  # the tail is in it
        assert sum(s.tokens for s in shards) == listed.tokens
        for shard in shards:
            raw = (manifest.directory / shard.name).read_bytes()
            assert shard.sha256 == hashlib.sha256(raw).hexdigest()
            assert len(raw) == 1024 + 2 * shard.tokens
    assert len(manifest.splits["train"].shards) > 9
    assert sorted(os.listdir(manifest.directory)) == sorted(names)
    assert not list(manifest.directory.parent.glob("out.*"))
    assert read_manifest(Path(data.path)) == manifest


@pytest.mark.parametrize("size", [SHARD - 2, SHARD - 1, SHARD, 3 * SHARD - 1, 3 * SHARD])
def test_a_document_may_end_anywhere_in_a_shard(tmp_path: Path, size: int):
    (tmp_path / "a.txt").write_text("x" * size)
    data = DataConfig(str(tmp_path / "out"), "bytes", None, (str(tmp_path / "a.txt"),), 0.0)
    manifest = prepared_from(data)
    counts = [shard.tokens for shard in manifest.splits["train"].shards]
    full = max(1, (size + 1) // SHARD)
    assert counts == [SHARD] * (full - 1) + [size + 1 - SHARD * (full - 1)]
    assert stream(manifest, "train").tolist() == [ord("x")] * size + [256]
    assert (manifest.splits["val"].tokens, manifest.splits["val"].shards) == (0, ())


def test_the_tail_of_a_single_document_is_validation(tmp_path: Path):
    text = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "a.txt").write_text(text)
    data = DataConfig(str(tmp_path / "out"), "bytes", None, (str(tmp_path / "a.txt"),), 0.1)
    manifest = prepared_from(data)
    (train,), (val,) = (documents_in(stream(manifest, s), 256) for s in ("train", "val"))
    assert bytes(train + val).decode() == text
    assert train[-1] == ord("\n")
    assert 0.09 < len(val) / len(text) <= 0.1


def test_a_bpe_is_trained_on_the_training_text_alone(tmp_path: Path):
    (tmp_path / "a.txt").write_text("ab cdefghijklmnopqrst\n" * 100 + "zq " * 300)
    data = DataConfig(str(tmp_path / "out"), "bpe:260", None, (str(tmp_path / "a.txt"),), 0.3)
    manifest = prepared_from(data)
    tokenizer = read_tokenizer(manifest)
    val = tokenizer.decode(stream(manifest, "val"))
    assert val.count("zq") == 300
    assert not any(set(b"zq") & set(tokenizer.token_bytes(i)) for i in range(256, 259))


def test_progress_adds_up_to_the_bytes_and_tokens_of_the_text(data: DataConfig, texts: list[str]):
    seen: list[tuple[str, int, int]] = []
    manifest = prepare_shards(data, text_files(data.inputs), lambda *done: seen.append(done))
    size = sum(len(text.encode()) for text in texts)
    assert {stage for stage, _, _ in seen} == {"tokenising"}
    assert (sum(b for _, b, _ in seen), sum(t for _, _, t in seen)) == (size, size + len(texts))
    assert sum(split.tokens for split in manifest.splits.values()) == size + len(texts)
    seen.clear()
    prepare_shards(data, text_files(data.inputs), lambda *done: seen.append(done))
    assert {stage for stage, _, _ in seen} == {"reading"}  # to know whether it is the same text
    assert sum(b for _, b, _ in seen) == size


def test_the_same_settings_again_return_what_is_there(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
):
    first = prepared_from(data)
    before = snapshot(first.directory)
    monkeypatch.setattr(workspace, "make_tokenizer", refuse)
    assert prepared_from(data) == first
    assert snapshot(first.directory) == before


def test_other_settings_are_refused_with_the_difference(data: DataConfig):
    first = prepared_from(data)
    before = snapshot(first.directory)
    changes = {
        "tokenizer was 'bytes', now 'bpe:300'": dataclasses.replace(data, tokenizer="bpe:300"),
        "val_fraction was 0.1, now 0.2": dataclasses.replace(data, val_fraction=0.2),
        "bytes was": dataclasses.replace(data, inputs=data.inputs[1:]),
        "content was": dataclasses.replace(data, inputs=data.inputs[::-1]),
    }
    for says, changed in changes.items():
        with pytest.raises(UserError, match=f"{re.escape(data.path)}.*{re.escape(says)}"):
            prepared_from(changed)
    with pytest.raises(UserError, match=f"shard_tokens was {SHARD}, now 500"):
        prepared_from(data, shard_tokens=500)
    Path(data.inputs[3]).write_text("another text")
    with pytest.raises(UserError, match="content was"):
        prepared_from(data)
    assert snapshot(first.directory) == before
    assert not list(first.directory.parent.glob("out.*"))


def test_a_directory_of_something_else_is_refused_and_untouched(data: DataConfig):
    out = Path(data.path)
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    before = snapshot(out)
    with pytest.raises(UserError, match=f"{re.escape(data.path)} exists"):
        prepared_from(data)
    assert snapshot(out) == before


def test_a_file_in_the_way_is_refused_and_untouched(data: DataConfig):
    Path(data.path).write_text("years of work")
    with pytest.raises(UserError, match=re.escape(data.path)):
        prepared_from(data)
    assert Path(data.path).read_text() == "years of work"


def test_an_empty_directory_and_one_whose_parents_are_missing_are_both_fine(
    data: DataConfig, tmp_path: Path
):
    Path(data.path).mkdir()
    first = prepared_from(data)
    deep = dataclasses.replace(data, path=str(tmp_path / "a" / "b" / "out"))
    assert prepared_from(deep).splits == first.splits


@pytest.mark.parametrize("change", ["cut", "overwritten"])
def test_a_text_that_changes_meanwhile_is_refused(data: DataConfig, change: str):
    path = Path(data.inputs[-1])
    text = path.read_bytes()

    def spoil(stage: str, size: int, tokens: int) -> None:
        if stage == "tokenising":
            os.utime(path, (1, 1)) if change == "overwritten" else path.write_bytes(text[:3])

    with pytest.raises(UserError, match="the text was changed while it was being prepared"):
        prepare_shards(data, find_inputs(data), progress=spoil)
    assert not Path(data.path).exists()
    path.write_bytes(text)
    expected = prepared_from(dataclasses.replace(data, path=data.path + "2"))
    assert prepared_from(data).splits == expected.splits


def test_what_is_prepared_inside_its_own_input_is_none_of_it(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("text\n" * 50)
    with locked_workspace(str(tmp_path / "in/out")) as (_, directory):
        (directory / "plan.json").write_text("{}")
    data = DataConfig(str(tmp_path / "in/out"), inputs=(str(tmp_path / "in"),))
    assert [d.path.name for d in find_inputs(data)] == ["a.txt"]


def test_a_link_to_an_empty_directory_is_filled(data: DataConfig, tmp_path: Path):
    (tmp_path / "disk").mkdir()
    Path(data.path).symlink_to(tmp_path / "disk")
    prepared_from(data)
    assert Path(data.path).is_symlink()
    assert read_manifest(tmp_path / "disk").splits == read_manifest(Path(data.path)).splits


def test_a_prepared_directory_without_its_tokenizer_is_not_taken_for_complete(data: DataConfig):
    (prepared_from(data).directory / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="move its directory away and prepare the data again"):
        prepared_from(data)


def test_a_tiny_share_of_many_documents_is_nothing(data: DataConfig):
    manifest = prepared_from(dataclasses.replace(data, val_fraction=1e-9))
    assert manifest.splits["val"].documents == 0


def test_endings_are_known_in_capitals_too(tmp_path: Path):
    (tmp_path / "A.JSONL").write_text('{"text": "one"}\n')
    inputs = find_inputs(DataConfig(inputs=(str(tmp_path),)))
    found = store_plain_files(inputs, tmp_path / "stored", Oddities())
    assert [d.kind for d in found] == ["jsonl"]


def test_what_a_killed_preparation_left_does_not_matter(data: DataConfig, tmp_path: Path):
    expected = prepared_from(dataclasses.replace(data, path=str(tmp_path / "clean")))
    left = Path(data.path + ".preparing")
    left.mkdir()
    for name in ("manifest.json", "train_000000.bin", "train_009999.bin", "tokenizer.json"):
        (left / name).write_text("half")
    assert prepared_from(data).splits == expected.splits
    assert sorted(os.listdir(data.path)) == sorted(os.listdir(expected.directory))
    assert not left.exists()


def test_shards_are_on_the_disk_before_what_they_came_from_is_deleted(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
):
    waited: list[Path] = []

    def wait(*places: Path) -> None:
        assert (places[-1] / "units").is_dir()
        waited.extend(places)

    monkeypatch.setattr(workspace, "reach_disk", wait)
    manifest = prepared_from(data)
    shards = [shard.name for split in manifest.splits.values() for shard in split.shards]
    assert sorted(place.name for place in waited) == sorted([*shards, "out.preparing"])


def test_a_failure_half_way_leaves_no_data_and_the_next_try_succeeds(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
):
    encode, calls = ByteTokenizer.encode, iter(range(1000))

    def breaks(self: ByteTokenizer, text: str) -> np.ndarray:
        if next(calls) == 60:
            raise RuntimeError("a worker broke")
        return encode(self, text)

    with monkeypatch.context() as patch:
        patch.setattr(ByteTokenizer, "encode", breaks)
        with pytest.raises(RuntimeError, match="a worker broke"):
            prepared_from(data)
    assert not Path(data.path).exists()
    assert prepared_from(data).splits["train"].tokens > 10 * SHARD


def test_an_id_beyond_the_vocabulary_is_never_written(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ByteTokenizer, "encode", lambda self, text: np.array([1, 257], np.uint32))
    with pytest.raises(ValueError, match="bytes gave id 257"):
        prepared_from(data)
    assert not Path(data.path).exists()


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "--config gpt2_124m"),
        (["--data.hub", "a/b:c"], "--config gpt2_124m --hub a/b:c"),
        (["--data.hub", "a/b:c", "--data.path", "x y"],
         "--config gpt2_124m --hub a/b:c --out 'x y'"),
        (["--data.path", "x"], "--config gpt2_124m --input FILE... --out x"),
        (["--data.path", "x", "--data.inputs", "a b.txt", "c"],
         "--config gpt2_124m --input 'a b.txt' c --out x"),
    ],
)  # fmt: skip
def test_the_command_that_makes_the_data_of_a_config(words: list[str], command: str):
    parsed = parse_config(ConfigCommand, ["--config", "gpt2_124m", *words], "test")
    own = load_config("gpt2_124m").data
    assert how_to_prepare("gpt2_124m", parsed.run, own) == f"python -m gptjax.prepare {command}"


def test_nothing_to_prepare_says_what_to_give():
    with pytest.raises(UserError, match="--input"):
        find_inputs(DataConfig())


def test_the_standard_library_needs_no_files_and_given_files_come_first(data: DataConfig):
    library = find_inputs(DataConfig(source="stdlib"))
    assert library[0].path.suffix == ".py"
    given = find_inputs(dataclasses.replace(data, source="stdlib"))
    assert [str(d.path) for d in given] == list(data.inputs)


def test_the_command_line_prepares_and_says_what_came_of_it(texts: list[str], tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(texts[47].encode())
    arguments = ["--input", "a.txt", "--tokenizer", "bytes", "--out", "data/a"]
    for _ in range(2):  # the second time it is there already
        done = run_verb("prepare", *arguments, "--val-fraction", 0.2, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        manifest = read_manifest(tmp_path / "data" / "a")
        for split in manifest.splits.values():
            assert f"{split.tokens:,} tokens in {len(split.shards)} shards" in done.stdout
    assert manifest.source == "a.txt"
    tokens = np.concatenate([stream(manifest, split) for split in ("train", "val")])
    assert bytes(tokens[tokens < 256].tolist()).decode() == texts[47]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("", 2, ["--input and --out missing"]),
        ("--input a.txt", 2, ["--out missing"]),
        ("--input a.txt --out out --tokenizer gpt3", 2, ["gpt3", "gpt2, bytes, chars, bpe:N"]),
        ("--input a.txt --out out --tokenizer bpe:256", 2, ["bpe:256", "257 or more"]),
        ("--input a.txt --out out --val-fraction 0.7", 2, ["val_fraction", "0.7"]),
        ("--input a.txt --out out --tokeniser bytes", 2, ["did you mean --tokenizer?"]),
        ("--config no_such_config", 2, ["unknown config 'no_such_config'"]),
        ("--input a.txt b.txt *.md --out out", 1, ["no such text file: b.txt, *.md"]),
        ("--input empty.txt --out out", 1, ["no text in empty.txt"]),
        ("--input a.txt --out out --workers 0", 2, ["--workers", "not 0"]),
        ("--input a.txt --out out --partition 3/3", 2, ["--partition must be i/n", "'3/3'"]),
        ("--input a.txt --out out --partition 0/2 --merge", 2, ["two steps"]),
        ("--input a.txt --out out --merge", 1, ["1 of 1 units", "leave out --merge"]),
        ("--input a.txt --out out --partition 0/2 --tokenizer bpe:300", 2, ["needs all the text"]),
        ("--input - --out out --partition 0/2", 2, ["standard input"]),
        ("--input - --out out --merge", 2, ["--merge joins the results"]),
        ("--input a.txt --out out --merge --tokenizer chars", 2, ["--merge joins the results"]),
        ("--inspect thesis", 1, ["no prepared data in thesis (no manifest.json)"]),
        ("--inspect thesis --input a.txt", 2, ["--inspect does not read --input"]),
        ("--adopt thesis --out a --val-fraction 0.1 --merge", 2, ["--val-fraction, --merge"]),
        ("--input a.txt --out out --format jsonl", 1, ["a.txt is not jsonl"]),
        ("--input a.txt --out out --format parquet", 1, ["a.txt is not a readable Parquet file"]),
        ("--input broken.gz --out out", 1, ["broken.gz cannot be unpacked"]),
        ("--input broken.zst --out out", 1, ["broken.zst cannot be unpacked"]),
        ("--input a.txt --out out --tokenizer bpe:9999", 1, ["not 9999", "ask for bpe:"]),
        ("--input a.txt --out thesis", 1, ["thesis exists"]),
        ("--input a.txt --out a.txt", 1, ["a.txt exists but is not a prepared data set"]),
        ("--input a.txt --out a.txt/out", 1, ["a.txt/out"]),
        ("--input ../a.txt --out .", 1, ["--out"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message_without_a_traceback(
    tmp_path: Path, arguments: str, code: int, says: list[str]
):
    for directory in (tmp_path, tmp_path / "work"):
        (directory / "thesis").mkdir(parents=True)
        (directory / "thesis" / "thesis.tex").write_text("years of work")
        (directory / "a.txt").write_text("one line\n" * 50)
        (directory / "empty.txt").write_text("")
        (directory / "broken.gz").write_bytes(b"not gzip")
        (directory / "broken.zst").write_bytes(b"not zstd")
    done = run_verb("prepare", *arguments.split(), cwd=tmp_path / "work")
    assert "Traceback" not in done.stderr
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert all(part in done.stderr for part in says)
    kept = ["a.txt", "broken.gz", "broken.zst", "empty.txt", "thesis"]
    assert [n for n in sorted(os.listdir(tmp_path / "work")) if "preparing" not in n] == kept


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--input a.txt --out out --vocab-size 4096", "--vocab-size works only with"),
        ("--input a.txt --out out --tokens 9", "works only with --hub"),
        ("--input a.txt --out out --shard-tokens 0", "--shard-tokens must be 1 to 2"),
        ("--input a.txt --out out --shard-tokens 9999999999", "--shard-tokens must be 1 to 2"),
        ("--input a.txt --out out --shard-tokens 9 --partition 0/2", "which writes the shards"),
        ("--input a.txt --out out --text-field body", "all input is text"),
        ("--input l.jsonl --out out --doc-separator x", "all input is jsonl"),
        ("--input a.txt --out out --format jsonl --doc-separator x", "all input is jsonl"),
        ("--hub a/b --out out --doc-separator x", "not with --hub"),
        ("--inspect out --workers 1", "--inspect does not read --workers"),
        ("--adopt in --val-fraction 0.1", "--adopt does not read --val-fraction"),
        ("--adopt in --vocab-size 4096", "--adopt does not read --vocab-size"),
        ("--adopt in --tokenizer bytes --shard-tokens 9", "give --out another DIR"),
        ("--adopt in --tokenizer gpt9", "not 'gpt9'"),
        *(
            (f"--train-tokenizer --input a.txt --out t.json {flag}", "--train-tokenizer does not")
            for flag in ("--tokenizer bytes", "--val-fraction 0.1", "--workers 2", "--merge",
                         "--partition 0/2", "--shard-tokens 9")
        ),
    ],
)  # fmt: skip
def test_flags_without_effect_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, reason: str
):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("text\n")
    Path("l.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ConfigError, match=reason):
        prepare(arguments.split())
    assert sorted(os.listdir()) == ["a.txt", "l.jsonl"]


def test_shards_of_another_size_are_made_and_named_and_not_mixed(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_bytes("".join(texts).encode())
    words = "--input a.txt --out {} --shard-tokens 5000 --workers {}".format
    for out, workers in (("one", 1), ("three", 3)):
        assert prepare(words(out, workers).split()) == 0
    manifest = read_manifest(tmp_path / "one")
    assert manifest.settings["shard_tokens"] == 5000
    assert min(shard.tokens for shard in manifest.splits["train"].shards) >= 5000
    assert [p.read_bytes() for p in sorted(Path("one").iterdir())] == (
        [p.read_bytes() for p in sorted(Path("three").iterdir())]
    )
    with pytest.raises(UserError, match="shard_tokens was 5000, now 1048576"):
        prepare(["--input", "a.txt", "--out", "one"])


def test_a_text_that_may_not_be_read_is_named(data: DataConfig, monkeypatch: pytest.MonkeyPatch):
    opened = Path.open

    def guarded(path: Path, *args: object, **kwargs: object):
        if str(path) == data.inputs[5]:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded)
    with pytest.raises(UserError, match=re.escape(data.inputs[5])):
        prepared_from(data)
    assert not Path(data.path).exists()


def test_an_empty_working_directory_as_out_is_made_or_refused_without_a_traceback(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one line\n" * 50)
    (tmp_path / "work").mkdir()
    done = run_verb("prepare", "--input", "../a.txt", "--out", ".", cwd=tmp_path / "work")
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.startswith("error: ")


MEASURE = """
import re, sys
from gptjax.config import DataConfig
from gptjax.preparation.pipeline import prepare_shards
from gptjax.preparation.sources import find_inputs
text, out, tokenizer = sys.argv[1:]
data = DataConfig(path=out, tokenizer=tokenizer, inputs=(text,), val_fraction=0.05)
tokens = prepare_shards(data, find_inputs(data), workers=2).splits["train"].tokens
print(tokens, re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's peak of memory")
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:400"])
def test_memory_does_not_grow_with_the_text(tmp_path: Path, text_file: Path, tokenizer: str):
    peaks = []
    for size in (32 * 2**20, 80 * 2**20):  # both fill every buffer between reader and writer
        path, out = tmp_path / f"{size}.txt", tmp_path / f"{size}"
        raw = text_file.read_bytes()
        path.write_bytes((raw * (size // len(raw) + 1))[:size])
        command = [sys.executable, "-c", MEASURE, path, out, tokenizer]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        tokens, peak_kB = map(int, done.stdout.split())
        assert tokens > size / 5
        peaks.append(peak_kB * 1024)
    assert peaks[1] - peaks[0] < 24 * 2**20  # half of what was added

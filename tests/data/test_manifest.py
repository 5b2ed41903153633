"""A manifest is read as written, ties shards and tokenizer together, and names every fault."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from gptjax.base.errors import UserError
from gptjax.data.manifest import MANIFEST, Manifest, is_prepared, read_manifest, read_tokenizer
from gptjax.data.shards import ShardInfo
from gptjax.tokenizers.bpe import train_bpe
from gptjax.tokenizers.plain import ByteTokenizer
from gptjax.tokenizers.registry import fingerprint


@pytest.fixture
def data(prepared: Manifest, tmp_path: Path) -> Manifest:
    """A copy of the prepared data, to damage."""
    shutil.copytree(prepared.directory, tmp_path / "data")
    return dataclasses.replace(prepared, directory=tmp_path / "data")


def test_a_manifest_comes_back_as_it_was_written(data: Manifest):
    assert is_prepared(data.directory)
    assert read_manifest(data.directory) == data
    changed = dataclasses.replace(data, source="elsewhere", settings={"a": [1, 0.5, "漢"]})
    changed.write()
    assert read_manifest(data.directory) == changed
    table = json.loads((data.directory / MANIFEST).read_text())
    assert str(data.directory) not in json.dumps(table)


def test_a_write_that_fails_leaves_the_old_manifest(data: Manifest, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no space"):
        dataclasses.replace(data, source="elsewhere").write()
    assert read_manifest(data.directory) == data


def edited(**changes: object):
    return lambda text: json.dumps({**json.loads(text), **changes})


def without(key: str):
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != key})


def in_train(**fields):
    """A change of the training split's fields."""

    def damage(text: str) -> str:
        table = json.loads(text)
        table["splits"]["train"] |= fields
        return json.dumps(table)

    return damage


GARBAGE = {
    "empty": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
    "null": lambda text: "null",
    "no format": without("format"),
    "no splits": without("splits"),
    "no dtype": without("dtype"),
    "a field too many": edited(colour="red"),
    "splits are a list": edited(splits=[]),
    "a split lacks everything": edited(splits={"train": {}}),
    "an unknown type": edited(dtype="float16"),
    "ids beyond the type": edited(n_vocab=65537),
    "a count that is text": in_train(tokens="1"),
    "a count that is a fraction": in_train(bytes=0.5),
    "no shards for its tokens": in_train(shards=[]),
    "nested too deeply": lambda text: "[" * 100_000,
}


@pytest.mark.parametrize("damage", GARBAGE.values(), ids=GARBAGE)
def test_a_garbage_manifest_is_named(data: Manifest, damage):
    path = data.directory / MANIFEST
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=f"{re.escape(str(path))} is not a readable manifest"):
        read_manifest(data.directory)


def test_a_manifest_of_bytes_that_are_no_text_is_named(data: Manifest):
    path = data.directory / MANIFEST
    path.write_bytes(b"\xff\xfe\0\x80" * 100)
    with pytest.raises(UserError, match=f"{re.escape(str(path))} is not a readable manifest"):
        read_manifest(data.directory)


def test_a_directory_without_a_manifest_is_not_prepared(tmp_path: Path):
    assert not is_prepared(tmp_path)
    assert not is_prepared(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=re.escape(f"no prepared data in {tmp_path} (no {MANIFEST})")
    ):
        read_manifest(tmp_path)


def test_a_manifest_of_another_format_says_which_is_read(data: Manifest):
    path = data.directory / MANIFEST
    path.write_text(edited(format=2)(path.read_text()))
    with pytest.raises(UserError, match=f"{re.escape(str(path))} is not in format 1"):
        read_manifest(data.directory)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_shard_that_is_missing_or_damaged_is_named(data: Manifest, split: str, damage: str):
    path = data.directory / data.splits[split].shards[-1].name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=f"{re.escape(str(path))} is {damage}"):
        read_manifest(data.directory)


def test_the_tokenizer_beside_the_shards_is_the_one_that_made_them(data: Manifest):
    assert read_tokenizer(data).name == data.tokenizer == "bytes"
    assert data.tokenizer_fingerprint == fingerprint(ByteTokenizer())


def test_a_swapped_tokenizer_is_named_with_both_fingerprints(data: Manifest):
    other = train_bpe(["the sea the sea the sea"], 258)
    path = data.directory / "tokenizer.json"
    path.write_text(other.to_json())
    with pytest.raises(UserError) as caught:
        read_tokenizer(data)
    for part in (str(path), fingerprint(other), data.tokenizer_fingerprint):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\0\x80"])
def test_a_missing_or_garbage_tokenizer_is_named(data: Manifest, content: bytes | None):
    path = data.directory / "tokenizer.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_tokenizer(data)


def with_shards(manifest: Manifest, *shards: ShardInfo) -> Manifest:
    train = dataclasses.replace(manifest.splits["train"], shards=shards)
    return dataclasses.replace(manifest, splits={**manifest.splits, "train": train})


def test_the_fingerprint_changes_with_every_shard_and_with_the_tokenizer(prepared: Manifest):
    shards = prepared.splits["train"].shards
    assert len(shards) > 2
    altered = [
        with_shards(
            prepared, *shards[:i], dataclasses.replace(shards[i], sha256="0"), *shards[i + 1 :]
        )
        for i in range(len(shards))
    ]
    others = [
        with_shards(prepared, *shards[::-1]),
        with_shards(prepared, *shards[:-1]),
        dataclasses.replace(prepared, tokenizer_fingerprint="0"),
        dataclasses.replace(prepared, splits={"val": prepared.splits["train"]}),
    ]
    fingerprints = [m.fingerprint for m in (prepared, *altered, *others)]
    assert len(set(fingerprints)) == len(fingerprints)
    assert all(re.fullmatch("[0-9a-f]{16}", f) for f in fingerprints)


def test_the_fingerprint_does_not_change_with_the_place(prepared: Manifest, data: Manifest):
    moved = read_manifest(data.directory)
    assert moved.directory != prepared.directory
    assert moved.fingerprint == prepared.fingerprint
    renamed = dataclasses.replace(prepared, source="another name", settings={})
    assert renamed.fingerprint == prepared.fingerprint

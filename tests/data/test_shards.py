"""Shards are llm.c's format to the byte, appear whole or not at all, and damage is named."""

import hashlib
import os
import re
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.data.shards import (
    check_shard,
    format_of,
    open_shard,
    token_dtype,
    write_shard,
    write_shards,
)

FORMATS = [("uint16", "H", 20240520, 1), ("uint32", "I", 20240801, 7)]


def tokens_for(dtype: str, count: int) -> np.ndarray:
    top = np.iinfo(dtype).max
    tokens = np.random.default_rng(0).integers(0, top, count, dtype=np.uint32, endpoint=True)
    tokens[:2] = 0, top
    return tokens


def refuse(*_: object) -> None:
    raise OSError("no space left on device")


@pytest.mark.parametrize(("dtype", "letter", "magic", "version"), FORMATS)
@pytest.mark.parametrize("count", [2, 1000])
def test_a_shard_is_the_published_format_to_the_byte(
    tmp_path: Path, dtype: str, letter: str, magic: int, version: int, count: int
):
    path, tokens = tmp_path / "train_000003.bin", tokens_for(dtype, count)
    info = write_shard(path, tokens, dtype)
    raw = path.read_bytes()
    assert struct.unpack("<256i", raw[:1024]) == (magic, version, count, *[0] * 253)
    assert list(struct.unpack(f"<{count}{letter}", raw[1024:])) == tokens.tolist()
    assert (info.name, info.tokens) == (path.name, count)
    assert info.sha256 == hashlib.sha256(raw).hexdigest()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(("dtype", "letter", "magic", "version"), FORMATS)
def test_a_published_shard_is_read(
    tmp_path: Path, dtype: str, letter: str, magic: int, version: int
):
    path, tokens = tmp_path / "fineweb_train_000001.bin", tokens_for(dtype, 77).tolist()
    header = struct.pack("<256i", magic, version, 77, *[0] * 253)
    path.write_bytes(header + struct.pack(f"<77{letter}", *tokens))
    check_shard(path, 77, dtype)
    read = open_shard(path, 77, dtype)
    assert (read.dtype, read.tolist()) == (np.dtype(dtype), tokens)


def test_an_id_too_large_for_the_stored_type_is_never_written(tmp_path: Path):
    with pytest.raises(ValueError, match="token id 65536 does not fit uint16"):
        write_shard(tmp_path / "a.bin", np.array([1, 65536], np.uint32), "uint16")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("n_vocab", "dtype"),
    [(257, "uint16"), (65_535, "uint16"), (65_536, "uint16"), (65_537, "uint32")],
)
def test_the_stored_type_is_the_narrowest_that_holds_every_id(n_vocab: int, dtype: str):
    assert token_dtype(n_vocab) == dtype
    assert np.array(n_vocab - 1).astype(dtype) == n_vocab - 1


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_write_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
):
    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(OSError, match="no space"):
        write_shard(tmp_path / "train_000000.bin", tokens_for("uint16", 9), "uint16")
    assert not [name for name in os.listdir(tmp_path) if not name.startswith(".")]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
):
    path = tmp_path / "train_000000.bin"
    write_shard(path, tokens_for("uint16", 9), "uint16")
    before = path.read_bytes()
    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(OSError, match="no space"):
        write_shard(path, tokens_for("uint16", 10), "uint16")
    assert path.read_bytes() == before


def test_a_shard_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order, fsync, replace = [], os.fsync, os.replace
    path = tmp_path / "train_000000.bin"

    def synced(descriptor: int) -> None:
        order.append(("fsync", os.fstat(descriptor).st_size, path.exists()))
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        order.append(("replace", os.stat(source).st_size, path.exists()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_shard(path, tokens_for("uint16", 9), "uint16")
    size = 1024 + 2 * 9
    assert order == [("fsync", size, False), ("replace", size, False)]


def with_int(raw: bytes, position: int, value: int) -> bytes:
    return raw[: 4 * position] + struct.pack("<i", value) + raw[4 * position + 4 :]


DAMAGES = {
    "wrong magic": (lambda raw: with_int(raw, 0, 20240801), "magic number 20240801"),
    "wrong version": (lambda raw: with_int(raw, 1, 2), "version 2"),
    "wrong count": (lambda raw: with_int(raw, 2, 501), "501 tokens"),
    "one byte short": (lambda raw: raw[:-1], "truncated: 2023 bytes, expected 2024"),
    "one byte long": (lambda raw: raw + b"\0", "too long: 2025 bytes, expected 2024"),
    "header only": (lambda raw: raw[:1024], "truncated"),
    "half a header": (lambda raw: raw[:512], "truncated"),
    "empty": (lambda raw: b"", "truncated"),
    "a page of text": (lambda raw: b"<html>" + bytes(2018), "magic number"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_named(tmp_path: Path, damage, says: str):
    path = tmp_path / "train_000000.bin"
    write_shard(path, tokens_for("uint16", 500), "uint16")
    check_shard(path, 500, "uint16")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{re.escape(says)}"):
        check_shard(path, 500, "uint16")


@pytest.mark.parametrize("function", [check_shard, open_shard])
def test_a_missing_shard_is_named(tmp_path: Path, function):
    path = tmp_path / "train_000000.bin"
    with pytest.raises(UserError, match=re.escape(str(path))):
        function(path, 500, "uint16")


def test_a_shard_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    info = write_shard(tmp_path / "a.bin", np.arange(9), "uint16")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "fromfile", refuse)
    for read in (lambda p: check_shard(p, info.tokens, "uint16"), format_of):
        with pytest.raises(UserError, match=r"cannot read .*a\.bin: Permission denied"):
            read(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("total", "size", "counts"),
    [(0, 4, []), (1, 4, [1]), (3, 4, [3]), (4, 4, [4]), (7, 4, [7]), (8, 4, [4, 4]),
     (11, 4, [4, 7]), (12, 4, [4, 4, 4]), (12, 1, [1] * 12), (12, 100, [12])],
)  # fmt: skip
@pytest.mark.parametrize("part", [1, 3, 5, 100])
def test_no_shard_is_short_but_a_single_one(
    tmp_path: Path, total: int, size: int, counts: list[int], part: int
):
    tokens = np.arange(total, dtype=np.uint16)
    parts = (tokens[i : i + part] for i in range(0, total, part))
    shards = write_shards(tmp_path, "val", parts, total, "uint16", size)
    assert [s.tokens for s in shards] == counts
    paths = [tmp_path / f"val_{i:06d}.bin" for i in range(len(counts))]
    assert sorted(tmp_path.iterdir()) == paths == [tmp_path / s.name for s in shards]
    read = [open_shard(p, n, "uint16") for p, n in zip(paths, counts, strict=True)]
    assert [int(t) for shard in read for t in shard] == tokens.tolist()
    for path, shard in zip(paths, shards, strict=True):
        check_shard(path, shard.tokens, "uint16")
        assert shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_shard_is_written_part_by_part(tmp_path: Path):
    """Each part is asked for when the one before is in the file, so no two need be held."""
    held: list[weakref.ref] = []

    def parts() -> Iterator[np.ndarray]:
        for _ in range(20):
            assert sum(ref() is not None for ref in held) <= 1
            made = np.zeros(1000, np.uint16)
            held.append(weakref.ref(made))
            yield made
            del made

    (shard,) = write_shards(tmp_path, "train", parts(), 20_000, "uint16", 20_000)
    assert shard.tokens == 20_000


def test_more_tokens_than_counted_are_a_bug(tmp_path: Path):
    with pytest.raises(ValueError, match="more than 3 tokens"):
        write_shards(tmp_path, "train", iter([np.zeros(3, np.uint16)] * 2), 3, "uint16", 3)

"""Shards compared with the hashes of their manifest: which of them, and what is found."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from gptjax.data.manifest import Manifest, read_manifest
from gptjax.data.shards import HEADER_BYTES
from gptjax.data.verification import StoredShard, fault_of, sampled, stored_shards


@pytest.fixture
def copied(prepared, tmp_path) -> Manifest:
    """Prepared data that a test may damage."""
    return read_manifest(shutil.copytree(prepared.directory, tmp_path / "data"))


def faults(manifest: Manifest) -> list[str]:
    read: list[int] = []
    found = [fault_of(shard, read.append) for shard in stored_shards([manifest])]
    return [fault for fault in found if fault is not None]


def test_every_shard_of_every_split_is_there_once(copied):
    found = stored_shards([copied, copied])
    names = [s.name for split in copied.splits.values() for s in split.shards]
    assert [shard.path.name for shard in found] == names
    assert all(shard.size == shard.path.stat().st_size > HEADER_BYTES for shard in found)
    assert faults(copied) == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_flipped_bit_is_found_in_any_shard(copied, split):
    path = copied.directory / copied.splits[split].shards[-1].name
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)
    read_manifest(copied.directory)  # size and header are right
    (fault,) = faults(copied)
    assert fault.startswith(f"shard {path} is not the one that its manifest lists")


def test_a_shard_that_went_away_is_named(copied):
    (shard, *_) = stored_shards([copied])
    shard.path.unlink()
    fault = fault_of(shard, lambda count: None)
    assert fault is not None
    assert "cannot be read (No such file or directory)" in fault


def shards(*sizes: int) -> list[StoredShard]:
    return [StoredShard(Path(str(i)), size, "") for i, size in enumerate(sizes)]


def test_a_sample_is_bounded_but_never_empty_and_depends_on_its_seed_alone():
    ten = shards(*[30] * 10)
    assert sampled(ten, "a", 100) == sampled(ten, "a", 100)
    chosen = [sampled(ten, str(seed), 100) for seed in range(20)]
    assert {len(some) for some in chosen} == {3}
    assert {shard for some in chosen for shard in some} == set(ten)
    assert sampled(ten, "a", 1000) != ten
    assert sorted(sampled(ten, "a", 1000)) == sorted(ten)
    assert len(sampled(shards(500, 500), "a", 100)) == 1
    assert sampled([], "a", 100) == []


def test_shards_of_other_places_have_the_hashes_of_their_manifest(copied):
    """An adopted shard lies outside the directory, under its whole path."""
    elsewhere = copied.directory.parent / "elsewhere.bin"
    first = copied.splits["train"].shards[0]
    shutil.move(copied.directory / first.name, elsewhere)
    moved = dataclasses.replace(first, name=str(elsewhere))
    train = copied.splits["train"]
    splits = {"train": dataclasses.replace(train, shards=(moved, *train.shards[1:]))}
    assert faults(dataclasses.replace(copied, splits=splits)) == []

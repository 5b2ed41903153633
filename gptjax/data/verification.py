"""Shards compared with the hashes of their manifest: a flipped bit changes losses in silence.

Reading a manifest checks the size and the header of every shard, which costs nothing. Only reading
all of a shard tells whether its tokens are still those that were prepared.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gptjax.base.files import sha256_of
from gptjax.data.manifest import Manifest

SAMPLED_BYTES = 2**28  # a second or less of hashing, and a few seconds of a network's disk


class StoredShard(NamedTuple):
    """A shard where it lies, and what its manifest says."""

    path: Path
    size: int
    """Bytes."""
    sha256: str


def stored_shards(manifests: Iterable[Manifest]) -> list[StoredShard]:
    """All shards of these data, those of training and of validation, each once."""
    found = {}
    for manifest in manifests:
        for split in manifest.splits.values():
            for shard in split.shards:
                path = manifest.directory / shard.name
                found[path] = StoredShard(path, path.stat().st_size, shard.sha256)
    return list(found.values())


def sampled(
    shards: Sequence[StoredShard], seed: str, most: int = SAMPLED_BYTES
) -> list[StoredShard]:
    """Some of the shards, chosen by a seed: at most so many bytes, but at least one shard."""
    order, chosen, total = random.Random(seed).sample(shards, len(shards)), [], 0
    for shard in order:
        if not chosen or total + shard.size <= most:
            chosen.append(shard)
            total += shard.size
    return chosen


def fault_of(shard: StoredShard, progress: Callable[[int], None]) -> str | None:
    """The difference between a shard and its manifest, in words; None without one.

    `progress` gets the number of bytes just read.
    """
    again = "prepare the data again, or copy it again from where it is good"
    try:
        found = sha256_of(shard.path, progress)
    except OSError as error:
        return f"shard {shard.path} cannot be read ({error.strerror or error}): {again}"
    if found == shard.sha256:
        return None
    return (
        f"shard {shard.path} is not the one that its manifest lists: sha256 {found[:16]}..., "
        f"expected {shard.sha256[:16]}...: it was changed or damaged. Look at the others with "
        f"--data.verify full, and {again}"
    )

"""The manifest of a prepared data set: the contents of its shards, and their tokenizer.

A directory of shards with `manifest.json` and `tokenizer.json` is complete and self-contained,
because the manifest is written last.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.files import write_atomically
from gptjax.data.shards import DTYPES, LAYOUTS, ShardInfo, check_shard
from gptjax.tokenizers.plain import Tokenizer
from gptjax.tokenizers.registry import fingerprint, tokenizer_from_json

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
FORMAT = 1
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Split:
    """One side of the train/validation split: totals and its shards, in order."""

    tokens: int
    documents: int
    bytes: int
    shards: tuple[ShardInfo, ...]


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    `settings` are the choices that made the data; `notes` count the oddities of the text.
    """

    directory: Path
    source: str
    tokenizer: str
    n_vocab: int
    tokenizer_fingerprint: str
    dtype: str
    splits: dict[str, Split]
    settings: dict[str, Any]
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change if any token of any shard changes."""
        shards = {
            split: [[Path(s.name).name, s.tokens, s.sha256] for s in content.shards]
            for split, content in self.splits.items()
        }
        content = json.dumps([self.tokenizer_fingerprint, shards], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def write(self) -> None:
        """Write `manifest.json` into the directory, atomically."""
        table = {"format": FORMAT, **dataclasses.asdict(self)}
        del table["directory"]
        write_atomically(self.directory / MANIFEST, (json.dumps(table, indent=1) + "\n").encode())


def is_prepared(directory: Path) -> bool:
    """Whether the directory holds a finished data set."""
    return (directory / MANIFEST).is_file()


def read_manifest(directory: Path) -> Manifest:
    """Read and check a manifest and every shard's size and header.

    Raises `UserError` that names the first file that is missing, damaged or of another format.
    """
    path = directory / MANIFEST
    if not is_prepared(directory):
        raise UserError(
            f"there is no prepared data in {directory} (no {MANIFEST}): python -m gptjax.prepare "
            "makes it"
        )
    try:
        table = json.loads(path.read_text())
        if table.pop("format") != FORMAT:
            raise UserError(f"{path} is not in format {FORMAT}, which this version reads")
        splits = {
            name: Split(**{**s, "shards": tuple(ShardInfo(**shard) for shard in s["shards"])})
            for name, s in table.pop("splits").items()
        }
        manifest = Manifest(directory=directory, splits=splits, **table)
        if manifest.dtype not in DTYPES:
            raise ValueError(f"dtype {manifest.dtype}, expected one of {', '.join(DTYPES)}")
        layouts = {shard.layout for split in splits.values() for shard in split.shards}
        if not layouts <= set(LAYOUTS):
            raise ValueError(f"shards of layout {layouts}, expected {', '.join(LAYOUTS)}")
        if set(splits) != set(SPLITS) or not isinstance(manifest.n_vocab, int):
            raise ValueError("its splits or its vocabulary size are not those of this version")
        for split in splits.values():
            _check_types(split)
        if manifest.n_vocab - 1 > np.iinfo(manifest.dtype).max:
            raise ValueError(f"ids up to {manifest.n_vocab - 1} do not fit {manifest.dtype}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a readable manifest ({type(error).__name__}: {error}): "
            "move its directory away and prepare the data again"
        ) from error
    for split in manifest.splits.values():
        for shard in split.shards:
            check_shard(directory / shard.name, shard.tokens, manifest.dtype, shard.layout)
    return manifest


def _check_types(split: Split) -> None:
    """Raise ValueError if a split's numbers are not numbers, or do not add up."""
    numbers = [split.tokens, split.documents, split.bytes, *(s.tokens for s in split.shards)]
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a count in it is not a whole number")
    if not all(isinstance(text, str) for s in split.shards for text in (s.name, s.sha256)):
        raise ValueError("a name or a hash in it is not a text")
    if sum(s.tokens for s in split.shards) != split.tokens:
        raise ValueError(f"its shards do not have the {split.tokens:,} tokens of their split")


def read_tokenizer(manifest: Manifest) -> Tokenizer:
    """The tokenizer beside the shards; raises `UserError` if the manifest names another one."""
    path = manifest.directory / TOKENIZER
    try:
        tokenizer = tokenizer_from_json(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): move its directory away and prepare the data again"
        ) from error
    if fingerprint(tokenizer) != manifest.tokenizer_fingerprint:
        raise UserError(
            f"{path} is not the tokenizer that the manifest names: fingerprint "
            f"{fingerprint(tokenizer)}, expected {manifest.tokenizer_fingerprint} "
            f"({manifest.tokenizer}); move its directory away and prepare the data again"
        )
    if tokenizer.n_vocab != manifest.n_vocab:
        raise UserError(
            f"{manifest.directory / MANIFEST} has a vocabulary of {manifest.n_vocab}, but {path} "
            f"has {tokenizer.n_vocab}: move its directory away and prepare the data again"
        )
    return tokenizer

"""Finished units to shards: tokens of one split in order, cut every 2^20."""

from pathlib import Path

import numpy as np

from gptjax.data.manifest import Split
from gptjax.data.shards import ShardInfo, write_shard
from gptjax.data.tokenising import SplitCounts


class ShardWriter:
    """Collects the tokens of one split and writes a shard whenever one is full."""

    def __init__(self, directory: Path, split: str, dtype: str, shard_tokens: int):
        self.directory, self.split, self.dtype = directory, split, dtype
        self.shards: list[ShardInfo] = []
        self.documents = self.bytes = 0
        self._buffer, self._filled = np.empty(shard_tokens, np.dtype(dtype)), 0

    def count(self, counts: SplitCounts) -> None:
        """Add a unit's documents and bytes to the totals."""
        self.documents += counts.documents
        self.bytes += counts.bytes

    def add(self, tokens: np.ndarray) -> None:
        """Append tokens; they may fill any number of shards."""
        while len(tokens):
            take = min(len(tokens), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + take] = tokens[:take]
            self._filled, tokens = self._filled + take, tokens[take:]
            if self._filled == len(self._buffer):
                self._write()

    def finish(self) -> Split:
        """Write what is left, as the last and shorter shard."""
        if self._filled:
            self._write()
        total = sum(shard.tokens for shard in self.shards)
        return Split(total, self.documents, self.bytes, tuple(self.shards))

    def _write(self) -> None:
        path = self.directory / f"{self.split}_{len(self.shards):06d}.bin"
        self.shards.append(write_shard(path, self._buffer[: self._filled], self.dtype))
        self._filled = 0

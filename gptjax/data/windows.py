"""Training windows over token shards: one line of tokens, cut every T, stitched across shards.

Window i is tokens [i T, i T + T + 1) of the split: T inputs and, shifted by one, their T targets.
Every token but the first is a target exactly once; only a last, incomplete window is lost.
"""

import bisect
from functools import lru_cache
from itertools import accumulate

import numpy as np

from gptjax.base.errors import UserError
from gptjax.data.examples import Example, Examples, Origin, ShuffledExamples
from gptjax.data.manifest import Manifest
from gptjax.data.shards import Stamp, open_shard, require_same_content, stamp_of

OPEN_SHARDS = 128  # each open map holds a file descriptor, and the soft limit may be 256


class TokenWindows:
    """Random access to the windows of one split, each [T + 1] int32."""

    def __init__(self, manifest: Manifest, split: str, context: int):
        self.manifest, self.split, self.context = manifest, split, context
        self._shards = manifest.splits[split].shards
        self._ends = list(accumulate(shard.tokens for shard in self._shards))
        self._open = lru_cache(maxsize=OPEN_SHARDS)(self._map)
        self._stamps: dict[int, Stamp | None] = {}

    def __len__(self) -> int:
        tokens = self._ends[-1] if self._ends else 0
        return max(0, (tokens - 1) // self.context)

    def __repr__(self) -> str:
        return f"TokenWindows({self.manifest.directory}, {self.split}, {self.context})"

    def __getitem__(self, index: int) -> np.ndarray:
        """Window `index`, [T + 1] int32; raises `UserError` for an id outside the vocabulary."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * self.context
        return self.stretch(start, start + self.context + 1)

    def stretch(self, start: int, stop: int) -> np.ndarray:
        """The tokens of the split from `start` to before `stop`, int32; raises as above.

        Both are places in the whole split, which must reach to `stop`.
        """
        tokens = np.empty(stop - start, dtype=np.int32)
        filled, shard = 0, bisect.bisect_right(self._ends, start)
        while filled < len(tokens):
            held = self._open(shard)
            self._require_unchanged(shard)
            first = start + filled - (self._ends[shard] - len(held))
            part = held[first : first + len(tokens) - filled]
            self._check(part, shard)
            tokens[filled : filled + len(part)] = part
            filled, shard = filled + len(part), shard + 1
        return tokens

    def shuffled(self, seed: int) -> ShuffledExamples:
        """All windows as examples in the endless order of a seed.

        Raises `UserError` if there is no window.
        """
        if len(self) == 0:
            raise UserError(
                f"{self.manifest.directory} has too few {self.split} tokens for "
                f"one window of {self.context} + 1 (train.context, or model.n_ctx): prepare more "
                "text, or train with a shorter --train.context"
            )
        return ShuffledExamples(WindowExamples(self), seed)

    def origin(self, index: int) -> Origin:
        """The shard in which a window begins, and the number of the tokens before it there."""
        start = index * self.context
        shard = bisect.bisect_right(self._ends, start)
        first = self._ends[shard] - self._shards[shard].tokens
        path = self.manifest.directory / self._shards[shard].name
        return {"shard": str(path), "offset": start - first}

    def _map(self, shard: int) -> np.ndarray:
        info = self._shards[shard]
        path = self.manifest.directory / info.name
        self._stamps.setdefault(shard, stamp_of(path))
        return open_shard(path, info.tokens, self.manifest.dtype, info.layout)

    def _require_unchanged(self, shard: int) -> None:
        """Look at the file before its map is read: where it was cut, reading kills the process.

        A deleted file is no fault, since the map holds it.
        """
        info = self._shards[shard]
        stamp = stamp_of(self.manifest.directory / info.name)
        if stamp not in (None, self._stamps[shard]):
            require_same_content(self.manifest.directory / info.name, info, self.manifest.dtype)
            self._stamps[shard] = stamp

    def _check(self, part: np.ndarray, shard: int) -> None:
        # without this an id beyond the table would silently read another row of it
        if part.max() >= self.manifest.n_vocab:
            path = self.manifest.directory / self._shards[shard].name
            raise UserError(
                f"shard {path} holds token id {part.max()}, but the vocabulary of "
                f"{self.manifest.tokenizer} ends at {self.manifest.n_vocab - 1}: the "
                "file is damaged; move its directory away and prepare the data again"
            )


class WindowExamples(Examples):
    """The windows as examples of pretraining, in the field `tokens`."""

    def __init__(self, windows: TokenWindows):
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Example:
        return {"tokens": self.windows[index]}

    def origin(self, index: int) -> Origin:
        """Shard and offset of a window."""
        return self.windows.origin(index)

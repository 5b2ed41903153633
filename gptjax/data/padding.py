"""Examples of unequal length, padded to the longest of their batch, in a few lengths only.

Each length is compiled once, so lengths are rounded up to one of a few: the longest, its half, its
quarter and its eighth. All processes of a run pad alike, by the longest row of the whole batch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.data.examples import Example, Examples

FINEST = 8  # lengths are multiples of it
HALVINGS = 3  # of the longest length, so there are at most four lengths


def padded_lengths(longest: int) -> list[int]:
    """The lengths to which batches are padded, shortest first.

    >>> padded_lengths(200)
    [32, 56, 104, 200]
    """
    halves = {-(-longest // (FINEST << n)) * FINEST for n in range(HALVINGS + 1)}
    return sorted({*(n for n in halves if n < longest), longest})


class PaddedExamples(Examples):
    """Examples that `pad` makes from items of `lengths`; it is called with an item and a length."""

    def __init__(
        self,
        items: Sequence[NamedTuple],
        lengths: Sequence[int],
        longest: int,
        pad: Callable[..., Example],
    ):
        self._items, self.lengths, self._pad = items, lengths, pad
        self._padded = padded_lengths(longest)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Example:
        return self._pad(self._items[index], self._length([index]))

    def batch(self, own: Sequence[int], together: Sequence[int]) -> dict[str, np.ndarray]:
        """The examples `own` as rows, as long as the examples `together` need."""
        length = self._length(together)
        rows = [self._pad(self._items[index], length) for index in own]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def forms(self) -> list[Example]:
        """An example of each length that batches of these examples have, shortest first."""
        by_length = {self._length([index]): index for index in range(len(self))}
        return [self[index] for _, index in sorted(by_length.items())]

    def _length(self, indices: Sequence[int]) -> int:
        longest = max(self.lengths[index] for index in indices)
        return next(n for n in self._padded if n >= longest)

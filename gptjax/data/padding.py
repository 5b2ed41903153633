"""Examples of unequal length, padded to the longest of their batch, in a few lengths only.

Each length is compiled once, so lengths are rounded up to one of a few: the longest, its half, its
quarter and its eighth. All processes of a run pad alike, by the longest row of the whole batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gptjax.data.examples import Example, Examples, stacked

FINEST = 8  # lengths are multiples of it
HALVINGS = 3  # of the longest length, so there are at most four lengths


def padded_lengths(longest: int) -> list[int]:
    """The lengths to which batches are padded, shortest first.

    >>> padded_lengths(200)
    [32, 56, 104, 200]
    """
    halves = {-(-longest // (FINEST << n)) * FINEST for n in range(HALVINGS + 1)}
    return sorted({*(n for n in halves if n < longest), longest})


def padded_to(length: int, allowed: Sequence[int]) -> int:
    """The shortest of the `padded_lengths` that holds so many tokens.

    >>> padded_to(40, [32, 56, 104])
    56
    """
    return next(n for n in allowed if n >= length)


class PaddedExamples(Examples):
    """Examples that `pad` makes from items of `lengths`; it is called with an item and a length."""

    def __init__(
        self,
        items: Sequence[Any],
        lengths: Sequence[int],
        longest: int,
        pad: Callable[..., Example],
    ):
        self.items, self.lengths, self._pad = items, lengths, pad
        self._padded = padded_lengths(longest)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        return self._pad(self.items[index], self._length([index]))

    def batch(self, own: Sequence[int], together: Sequence[int]) -> dict[str, np.ndarray]:
        """The examples `own` as rows, as long as the examples `together` need."""
        length = self._length(together)
        return stacked([self._pad(self.items[index], length) for index in own])

    def forms(self) -> list[Example]:
        """An example of each length that batches of these examples have, shortest first."""
        by_length = {self._length([index]): index for index in range(len(self))}
        return [self[index] for _, index in sorted(by_length.items())]

    def _length(self, indices: Sequence[int]) -> int:
        longest = max(self.lengths[index] for index in indices)
        return padded_to(longest, self._padded)

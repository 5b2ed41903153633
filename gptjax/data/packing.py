"""Rows of equal length, each filled with several whole examples that do not see each other.

Attention stays inside `documents`, `positions` restart at each example, and no example predicts the
first token of the next, so a packed row has the losses and gradients of its examples alone. What
padding would waste on short examples is spent on others.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptjax.data.examples import Example, Examples, Origin


class Item(NamedTuple):
    """An example in tokens, one more than it has targets, and the weight of each target."""

    tokens: np.ndarray
    weights: np.ndarray


class PackedRows(Examples):
    """Rows of `length` targets, filled with items of at most so many targets."""

    def __init__(self, items: Sequence[Item], length: int, seed: int):
        self._items, self._length = items, length
        self.rows = best_fit([len(item.tokens) for item in items], length + 1, seed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return packed_row([self._items[i] for i in self.rows[index]], self._length)

    def origin(self, index: int) -> Origin:
        """The numbers of the items in a row, in their order."""
        return {"examples": list(self.rows[index])}

    @property
    def filled(self) -> float:
        """The share of all positions that hold tokens of examples."""
        tokens = sum(len(item.weights) for item in self._items)
        return tokens / max(1, self._length * len(self.rows))


def packed_row(items: Sequence[Item], length: int) -> Example:
    """A row of items, one after the other, padded to `length` targets.

    `documents` numbers the items, and the padding after them; `positions` count from each item's
    first token. Both belong to the inputs, `weights` to the targets.
    """
    row = {
        "tokens": np.zeros(length + 1, np.int32),
        "weights": np.zeros(length, np.float32),
        "documents": np.full(length, len(items), np.int32),
        "positions": np.arange(length, dtype=np.int32),
    }
    start = 0
    for number, item in enumerate(items):
        end = start + len(item.tokens)
        row["tokens"][start:end] = item.tokens
        row["weights"][start : end - 1] = item.weights
        row["documents"][start:end] = number
        row["positions"][start:] = np.arange(length - start)
        start = end
    return row


def best_fit(sizes: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Rows of item numbers, of at most `capacity` in all: the longest first, where least is left.

    Best-fit decreasing. The seed decides which items of equal size come together, and the order of
    items in a row. Raises `ValueError` if an item is longer than a row.

    >>> [sorted(row) for row in best_fit([4, 7, 2, 5, 3], 10, seed=0)]
    [[1, 4], [0, 3], [2]]
    """
    if len(sizes) and max(sizes) > capacity:
        raise ValueError(f"an item of size {max(sizes)} does not fit a row of {capacity}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-np.asarray(sizes)[order], kind="stable")]
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # what is left in each row, least first
    for item in order.tolist():
        place = bisect_left(free, (sizes[item], -1))
        if place == len(free):
            rows.append([])
            left, row = capacity, len(rows) - 1
        else:
            left, row = free.pop(place)
        rows[row].append(item)
        insort(free, (left - sizes[item], row))
    return [rng.permutation(row).tolist() for row in rows]


def row_length(sizes: Sequence[int], most: int, rows: int, seed: int, multiple: int = 8) -> int:
    """Targets of a row: `most`, or less if so many rows then hold everything.

    `sizes` are those of the examples to train on, in tokens.

    >>> row_length([20, 30, 25], 1024, rows=2, seed=0), row_length([20] * 1000, 64, rows=2, seed=0)
    (48, 64)
    """
    length = -(-max(sum(sizes) // rows, *sizes) // multiple) * multiple
    while length < most and len(best_fit(sizes, length + 1, seed)) > rows:
        length += multiple
    return min(most, length)

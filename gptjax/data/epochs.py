"""Epochs over a small set of examples: each example once, and the last batch of an epoch as it is.

Every epoch takes the same number of steps. If its last batch is not full, it is filled with rows
without weight, so that its loss is exactly the mean over the examples in it. The row of a step is a
function of seed and row number alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptjax.data.examples import EndlessExamples, Example, Examples, Origin


class EpochOrder(EndlessExamples):
    """The rows of all steps, `rows` each; every epoch has its own order of the examples."""

    def __init__(self, examples: Examples, rows: int, seed: int):
        import grain  # here, so that compiling a program does not need it

        self._examples, self._rows = examples, rows
        numbers: Any = grain.MapDataset.range(len(examples))
        self._numbers = numbers.seed(seed).shuffle().repeat()

    def place(self, row: int) -> int | None:
        """The number of the example in a row of the run; None for a row that only fills a batch."""
        count = len(self._examples)
        epoch, place = divmod(row, steps_per_epoch(count, self._rows) * self._rows)
        return int(self._numbers[epoch * count + place]) if place < count else None

    def __getitem__(self, row: int) -> Example:
        return {name: x[0] for name, x in self.batch([row], [row]).items()}

    def origin(self, row: int) -> Origin:
        """That of the example in this row; empty for a row that only fills a batch."""
        place = self.place(row)
        return {} if place is None else self._examples.origin(place)

    def batch(self, own: Sequence[int], together: Sequence[int]) -> dict[str, np.ndarray]:
        """Rows of this process, of a step that has the rows `together` on all processes."""
        places = [self.place(row) for row in own]
        everywhere = [place for row in together if (place := self.place(row)) is not None]
        # a batch is never without any example, but this process's part of it may be
        found = [everywhere[0] if place is None else place for place in places]
        batch = self._examples.batch(found, everywhere)
        is_real = np.array([place is not None for place in places], np.float32)
        weights = batch["weights"]
        return {**batch, "weights": weights * is_real.reshape(-1, *[1] * (weights.ndim - 1))}


def steps_per_epoch(examples: int, rows: int) -> int:
    """Steps that read every example once.

    >>> steps_per_epoch(1497, 32)
    47
    """
    return -(-examples // rows)

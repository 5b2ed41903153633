"""Batches as a pure function of (seed, step): this process's rows of an endless shuffled order.

Each step takes the next rows of an endless shuffled order of examples, and process p of P owns a
contiguous P-th of them. So the same global batch appears, bit for bit, on any number of processes;
any step is reached in O(1); and the only state of the data is the step. A batch has the fields of
its examples, rows first; the loader does not know them.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from copy import copy
from typing import Any, Protocol, Self, TypeVar

import grain
import numpy as np

from gptjax.base.errors import UserError
from gptjax.config.batches import BatchSchedule
from gptjax.config.run_batches import Batches, RunBatches
from gptjax.data.examples import IS_REAL, EndlessExamples, Examples

T = TypeVar("T")
Placed = TypeVar("Placed")
HostBatch = dict[str, np.ndarray]
HOST_AHEAD = 4  # batches Grain keeps ready in memory
DEVICE_AHEAD = 2  # batches already on their way to the device


class Shuffles(Protocol):
    """Data with an endless shuffled order of examples for every seed."""

    def shuffled(self, seed: int) -> EndlessExamples:
        """The order of a seed."""
        ...


class StepSource:
    """A Grain source: item `step` is the batch of this process's rows in that global step.

    Every example of a source appears once an epoch; each epoch has its own order.
    """

    def __init__(
        self,
        data: Shuffles,
        batches: Batches,
        steps: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ):
        self._order = data.shuffled(seed)
        if isinstance(batches, BatchSchedule):
            batches = RunBatches.of(batches)
        if (first := batches.schedule.first) % processes:
            raise UserError(
                f"{first} sequences a step (train.batch_tokens) do not divide among "
                f"{processes} processes"
            )
        self._batches, self._steps = batches, steps
        self._process, self._processes = process, processes

    def continued(self, step: int, rows: int) -> Self:
        """The source of a run that has read so many rows before `step`.

        They are others than those of its batches if the batch was changed, or data passed over.
        """
        source = copy(self)
        source._batches = self._batches.continued(step, rows)
        return source

    def rows_before(self, step: int) -> int:
        """The place of the first row of `step` in the order of all rows."""
        return self._batches.rows_before(step)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> HostBatch:
        """Rows of `step`, counted from 0."""
        rows, first = self._batches.rows(step), self.rows_before(step)
        local = rows // self._processes
        start = first + self._process * local
        return self._order.batch(range(start, start + local), range(first, first + rows))


@contextmanager
def batches_from(source: StepSource, step: int) -> Iterator[Iterator[HostBatch]]:
    """Iterate over the items of `source` from `step` on, read ahead by one thread."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=HOST_AHEAD)
    records: Any = source  # Grain needs no more than len() and indexing
    iterator = iter(grain.MapDataset.source(records)[step:].to_iter_dataset(options))
    iterator.start_prefetch()  # else the thread waits for the first next()
    try:
        yield iterator
    finally:
        iterator.close()  # else Grain's thread outlives the interpreter and complains


def read_ahead(items: Iterator[T], put: Callable[[T], Placed]) -> Iterator[Placed]:
    """Apply `put`, which starts a copy to the device, two items before they are asked for."""
    waiting: deque[Placed] = deque()
    for item in items:
        waiting.append(put(item))
        if len(waiting) > DEVICE_AHEAD:
            yield waiting.popleft()
    yield from waiting


def evenly_spread(examples: Sized, most: int | None) -> list[int]:
    """Indices of at most `most` examples, at least one, evenly spread over all of them.

    >>> evenly_spread(range(10), 4)
    [0, 2, 5, 7]
    """
    chosen = len(examples) if most is None else max(1, min(len(examples), most))
    return [i * len(examples) // chosen for i in range(chosen)]


def validation_batches(
    examples: Examples, rows: int, most: int | None, process: int = 0, processes: int = 1
) -> Iterator[HostBatch]:
    """The fixed validation set in batches of `rows` over all processes.

    At most `most` examples are used, spread evenly over the set; the choice depends on nothing
    else. The field IS_REAL is 0 for rows that only fill the last batch, so that every process gets
    equally many.
    """
    indices, local = evenly_spread(examples, most), rows // processes
    for start in range(0, len(indices), rows):
        mine = [start + process * local + r for r in range(local)]
        own = [indices[min(i, len(indices) - 1)] for i in mine]
        batch = examples.batch(own, indices[start : start + rows])
        yield {**batch, IS_REAL: np.array([i < len(indices) for i in mine], np.float32)}

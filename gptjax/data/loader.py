"""Batches as a pure function of (seed, step): Grain shuffles lazily, this process takes its rows.

The rows of each step follow those of the step before in an endless shuffled order of windows, and
process p of P owns a contiguous P-th of them. So the same global batch appears, bit for bit, on any
number of processes; any step is reached in O(1); and the only state of the data is the step.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grain
import numpy as np

from gptjax.data.corpus import MixedWindows
from gptjax.data.manifest import Manifest
from gptjax.data.tokenizers import tokenizer_identity
from gptjax.data.windows import TokenWindows
from gptjax.errors import UserError
from gptjax.ramp import BatchRamp

T = TypeVar("T")
Placed = TypeVar("Placed")
Batch = dict[str, Any]
HOST_AHEAD = 4  # batches Grain keeps ready in memory
DEVICE_AHEAD = 2  # batches already on their way to the device


class StepSource:
    """A Grain source whose item `step` is this process's rows of that global step.

    Items are [rows / processes, T + 1] int32. Every window of a source appears once an epoch;
    each epoch has its own order.
    """

    def __init__(
        self,
        windows: TokenWindows | MixedWindows,
        ramp: BatchRamp,
        steps: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ):
        self._order = windows.in_order(seed)
        if ramp.first % processes:
            raise UserError(
                f"{ramp.first} sequences an update do not divide among {processes} processes"
            )
        self._ramp, self._steps = ramp, steps
        self._process, self._processes = process, processes

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> np.ndarray:
        """Rows of `step`, counted from 0."""
        local = self._ramp.rows(step) // self._processes
        start = self._ramp.rows_before(step) + self._process * local
        rows: list[Any] = [self._order[i] for i in range(start, start + local)]
        return np.stack(rows)


@contextmanager
def batches_from(source: StepSource, step: int) -> Iterator[Iterator[np.ndarray]]:
    """Iterate over the items of `source` from `step` on, read ahead by one thread."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=HOST_AHEAD)
    records: Any = source  # Grain needs no more than len() and indexing
    iterator = iter(grain.MapDataset.source(records).to_iter_dataset(options))
    iterator.set_state({"next_index": step})
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


def training_batch(rows: np.ndarray, micro_steps: int) -> Batch:
    """Give rows [..., A B, T + 1] the shapes of an update: tokens_ABT (T + 1 long) and weights_ABT.

    Weights say how much each target counts; in pretraining all count the same.
    """
    *updates, _, length = rows.shape
    tokens_ABT = rows.reshape(*updates, micro_steps, -1, length)
    return {"tokens": tokens_ABT, "weights": np.ones(tokens_ABT[..., 1:].shape, np.float32)}


def validation_batches(
    windows: TokenWindows, rows: int, max_tokens: int | None, process: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """The fixed validation set in batches of `rows` over all processes: tokens_BT, weights_BT.

    At most `max_tokens` are used, spread evenly over the split; they depend on nothing else. Rows
    that only fill the last batch weigh nothing, so every process sees as many batches.
    """
    chosen = len(windows)
    if max_tokens is not None:
        chosen = max(1, min(chosen, max_tokens // windows.context))
    indices = [i * len(windows) // chosen for i in range(chosen)]
    local = rows // processes
    for start in range(0, chosen, rows):
        mine = [start + process * local + r for r in range(local)]
        tokens_BT = np.stack([windows[indices[min(i, chosen - 1)]] for i in mine])
        is_real_B = np.array([i < chosen for i in mine], dtype=np.float32)
        weights_BT = np.broadcast_to(is_real_B[:, None], tokens_BT[:, 1:].shape)
        yield {"tokens": tokens_BT, "weights": np.ascontiguousarray(weights_BT)}


def require_vocabulary(manifest: Manifest, n_vocab: int | None, tokenizer: str | None) -> int:
    """The data's vocabulary size; raises `UserError` where the config asks for another."""
    names = (None, manifest.tokenizer, manifest.tokenizer_fingerprint)
    if tokenizer not in names and tokenizer_identity(tokenizer or "") not in names:
        raise UserError(
            f"{manifest.directory} was tokenised with {manifest.tokenizer}, but the "
            f"config says data.tokenizer {tokenizer}: leave it out, or prepare the "
            "data with it"
        )
    if n_vocab is not None and n_vocab != manifest.n_vocab:
        raise UserError(
            f"{manifest.directory} has a vocabulary of {manifest.n_vocab} "
            f"({manifest.tokenizer}), but the config says model.n_vocab {n_vocab}: "
            "leave it out"
        )
    return manifest.n_vocab

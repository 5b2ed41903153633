"""Which updates one call of the compiled program makes, and what is due after it.

Launching a program takes a millisecond or two of a processor, and with several devices the next
launch waits for the end of the last: much of a small model's update, nothing of a large one's.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np

from gptjax.config import TrainConfig
from gptjax.data.loader import Batch
from gptjax.ramp import BatchRamp
from gptjax.training.metrics import Row
from gptjax.validation import profile_window


class Call(NamedTuple):
    """The batches of `updates` updates, on the devices."""

    batch: Batch
    updates: int


def updates_in_call(train: TrainConfig, ramp: BatchRamp, step: int) -> int:
    """How many updates the call after update `step` makes.

    `updates_per_call`, but a call ends where something is due (a validation, a sample, a
    checkpoint, an end of the trace), where the batch grows and at the last update.
    """
    first, count = profile_window(train.profile) or (0, 0) if train.profile else (0, 0)
    cadences = (train.eval_every_steps, train.sample_every_steps, train.save_every_steps)
    ends = [train.max_steps, first, first + count]
    ends += [(step // n + 1) * n for n in cadences if n]
    end = min(step + train.updates_per_call, *(e for e in ends if e > step))
    rows = ramp.rows(step)
    return next((s for s in range(step + 1, end) if ramp.rows(s) != rows), end) - step


def due(train: TrainConfig, step: int, stopping: bool, save_failed: bool) -> set[str]:
    """What is to happen after update `step`: any of `validate`, `sample`, `save`.

    The last update of a run does all that the run does at all; a stop request only saves; a save
    that failed is tried again.
    """
    last = step == train.max_steps
    every = {
        "validate": train.eval_every_steps,
        "sample": train.sample_every_steps,
        "save": train.save_every_steps,
    }
    now = {name for name, n in every.items() if n and (last or step % n == 0)}
    if stopping and not last:
        return {"save"}
    return now | {"save"} if last or save_failed else now


def rows_by_call(
    rows: Iterator[np.ndarray], train: TrainConfig, ramp: BatchRamp, step: int
) -> Iterator[np.ndarray]:
    """The rows of the updates after `step`, [R, T + 1] each, call by call: [updates, R, T + 1]."""
    while step < train.max_steps:
        updates = list(islice(rows, updates_in_call(train, ramp, step)))
        yield np.stack(updates)
        step += len(updates)


def rows_of_call(step: int, updates: int, metrics: Mapping[str, np.ndarray]) -> list[Row]:
    """What metrics.jsonl says of each update of a call that ends after `step`, and `skipped`.

    `metrics` has one number for a program of one update; else arrays, of which the first `updates`
    count.
    """
    found = {name: np.atleast_1d(x)[:updates] for name, x in metrics.items()}
    return [
        {
            "step": step - updates + 1 + i,
            "train_loss": float(found["loss"][i]),
            "learning_rate": float(found["learning_rate"][i]),
            "grad_norm": None if found["skipped"][i] else float(found["grad_norm"][i]),
            "tokens": int(found["tokens"][i]),
            "skipped": int(found["skipped"][i]),
        }
        for i in range(updates)
    ]

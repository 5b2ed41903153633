"""From rows to devices: what each call of the program is given, and what is due after it.

A call makes one update or several: launching a program takes a millisecond or two of a processor,
and with several devices the next launch waits for the end of the last, which is much of a small
model's update and nothing of a large one's. Nothing here knows what a batch holds.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gptjax.cluster.mesh import BatchLayout, put_everywhere, put_rows
from gptjax.config import TrainConfig
from gptjax.config.batches import BatchSchedule
from gptjax.config.names import profile_window
from gptjax.data.examples import Examples
from gptjax.data.loader import Batch, validation_batches
from gptjax.runs.metrics import Row


class Call(NamedTuple):
    """The batches of `updates` updates, on the devices, and how each is cut."""

    batch: Any
    updates: int
    layout: BatchLayout
    count: tuple[jax.Array, ...]
    """`updates`, where a program makes as many as it is told."""


class Feed(NamedTuple):
    """Where the batches of a run go: `layout` is that of its largest."""

    mesh: Mesh
    layout: BatchLayout
    updates_per_call: int

    def training(self, batches: list[Batch]) -> Call:
        """Start copying this process's rows of one call's updates to the devices."""
        local = self.layout.micro_rows // jax.process_count()
        rows = len(next(iter(batches[0].values()))) // local * self.layout.micro_rows
        layout, updates = self.layout.of_rows(rows), len(batches)

        def cut(x: np.ndarray) -> np.ndarray:
            return x.reshape(layout.micro_steps, local, *x.shape[1:])

        if self.updates_per_call == 1:
            (batch,) = batches
            placed = put_rows(self.mesh, {name: cut(x) for name, x in batch.items()}, axis=1)
            return Call(placed, 1, layout, ())
        filled = {}
        for name, first in batches[0].items():
            x = np.zeros((self.updates_per_call, *cut(first).shape), first.dtype)
            for i, batch in enumerate(batches):
                x[i] = cut(batch[name])
            filled[name] = x
        count = put_everywhere(self.mesh, np.int32(updates))
        return Call(put_rows(self.mesh, filled, axis=2), updates, layout, (count,))

    def validation(self, examples: Examples, most: int | None) -> Iterator[Any]:
        """At most `most` examples of a validation set in batches on the devices."""
        processes = (jax.process_index(), jax.process_count())
        for batch in validation_batches(examples, self.layout.micro_rows, most, *processes):
            yield put_rows(self.mesh, batch, axis=0)


def updates_in_call(train: TrainConfig, ramp: BatchSchedule, step: int) -> int:
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


def by_call(
    batches: Iterator[Batch], train: TrainConfig, ramp: BatchSchedule, step: int
) -> Iterator[list[Batch]]:
    """The batches of the updates after `step`, call by call."""
    while step < train.max_steps:
        updates = list(islice(batches, updates_in_call(train, ramp, step)))
        yield updates
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

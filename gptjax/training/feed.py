"""From rows to devices: the batches of each call of the program, and the work due after it.

A call takes one step or several: dispatching a program takes a millisecond or two of a CPU, and
with several devices the next dispatch waits until the last call ends. That is a large part of a
small model's step, and a negligible part of a large one's. Nothing here knows the fields of a
batch.
"""

from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gptjax.cluster.mesh import BatchLayout, put_everywhere, put_rows
from gptjax.config import TrainConfig
from gptjax.config.names import profile_window
from gptjax.config.run_batches import Batches
from gptjax.data.examples import Examples
from gptjax.data.loader import HostBatch, validation_batches
from gptjax.runs.metrics import Row

NOT_FINITE, REFUSED = "not finite", "spike"  # reasons why a step was skipped
Shape = tuple[tuple[str, tuple[int, ...]], ...]  # of an example, field by field


def shape_of(example: Mapping[str, np.ndarray], lead: int = 0) -> Shape:
    """The shape of an example, or of each in a batch with so many leading axes."""
    return tuple((name, x.shape[lead:]) for name, x in sorted(example.items()))


class Call(NamedTuple):
    """The batches of `steps` steps, on the devices, and the layout of each."""

    batch: Any
    steps: int
    layout: BatchLayout
    shape: Shape
    count: tuple[jax.Array, ...]
    """`steps` on the devices, if the program takes the number of steps as an argument."""


class Feed(NamedTuple):
    """Where the batches of a run go; `layout` is the layout of its largest batch."""

    mesh: Mesh
    layout: BatchLayout
    updates_per_call: int

    def training(self, batches: list[HostBatch]) -> Call:
        """Start copying this process's rows of one call's steps to the devices."""
        local = self.layout.micro_rows // jax.process_count()
        rows = len(next(iter(batches[0].values()))) // local * self.layout.micro_rows
        layout, steps, shape = self.layout.of_rows(rows), len(batches), shape_of(batches[0], 1)

        def cut(x: np.ndarray) -> np.ndarray:
            return x.reshape(layout.micro_steps, local, *x.shape[1:])

        if self.updates_per_call == 1:
            (batch,) = batches
            placed = put_rows(self.mesh, {name: cut(x) for name, x in batch.items()}, axis=1)
            return Call(placed, 1, layout, shape, ())
        filled = {}
        for name, first in batches[0].items():
            x = np.zeros((self.updates_per_call, *cut(first).shape), first.dtype)
            for i, batch in enumerate(batches):
                x[i] = cut(batch[name])
            filled[name] = x
        count = put_everywhere(self.mesh, np.int32(steps))
        return Call(put_rows(self.mesh, filled, axis=2), steps, layout, shape, (count,))

    def validation(self, examples: Examples, most: int | None) -> Iterator[Any]:
        """At most `most` examples of a validation set in batches on the devices."""
        processes = (jax.process_index(), jax.process_count())
        for batch in validation_batches(examples, self.layout.micro_rows, most, *processes):
            yield put_rows(self.mesh, batch, axis=0)


def steps_in_call(train: TrainConfig, run: Batches, step: int) -> int:
    """The number of steps in the call after step `step`.

    It is `updates_per_call`, but a call ends when something is due (a validation, a sample, a
    checkpoint, an end of the trace), when the batch grows, and at the last step.
    """
    first, count = profile_window(train.profile) or (0, 0) if train.profile else (0, 0)
    cadences = [n for _, n in _cadences(train)]
    ends = [train.max_steps, first, first + count]
    ends += [(step // n + 1) * n for n in cadences if n]
    end = min(step + train.updates_per_call, *(e for e in ends if e > step))
    rows = run.rows(step)
    return next((s for s in range(step + 1, end) if run.rows(s) != rows), end) - step


def due(train: TrainConfig, step: int, stopping: bool, save_owed: bool) -> set[str]:
    """The work due after step `step`: any of `validate`, `measure`, `sample`, `save`.

    After the last step, everything is due that the run ever does; after a stop request, only a
    save. A save that failed or was postponed (`save_owed`) is due after every step.
    """
    last = step == train.max_steps
    now = {name for name, n in _cadences(train) if n and (last or step % n == 0)}
    if stopping and not last:
        return {"save"}
    return now | {"save"} if last or save_owed else now


def _cadences(train: TrainConfig) -> list[tuple[str, int]]:
    """Each kind of work, and the number of steps between two of its kind; 0 means never."""
    measure = train.evaluate_on_every_steps or train.eval_every_steps or train.max_steps
    return [
        ("validate", train.eval_every_steps),
        ("measure", measure if train.evaluate_on else 0),
        ("sample", train.sample_every_steps),
        ("save", train.save_every_steps),
        ("save", train.keep_every_steps),
    ]


def by_call(
    batches: Iterator[HostBatch], train: TrainConfig, run: Batches, step: int
) -> Iterator[list[HostBatch]]:
    """The batches of the steps after `step`, call by call; all of a call have one shape."""
    while step < train.max_steps:
        in_call = list(islice(batches, steps_in_call(train, run, step)))
        for _, alike in groupby(in_call, lambda batch: shape_of(batch, 1)):
            yield list(alike)
        step += len(in_call)


def rows_of_call(step: int, steps: int, metrics: Mapping[str, np.ndarray]) -> list[Row]:
    """The rows of metrics.jsonl of a call that ends after `step`.

    A row has the reason as `skipped` if its step was skipped, and as `in_a_row` the number of steps
    so far that were because of gradients. A program of one step returns a number for each of
    `metrics`; a program of several returns arrays, of which the first `steps` items count.
    """
    values = {name: np.atleast_1d(x)[:steps] for name, x in metrics.items()}
    reasons = [
        NOT_FINITE if many else REFUSED if is_refused else None
        for many, is_refused in zip(values["not_finite"], values["refused"], strict=True)
    ]
    return [
        {
            "step": step - steps + 1 + i,
            "train_loss": float(values["loss"][i]),
            "learning_rate": float(values["learning_rate"][i]),
            "grad_norm": None if reasons[i] else float(values["grad_norm"][i]),
            "tokens": int(values["tokens"][i]),
            "skipped": reasons[i],
            "in_a_row": int(values["not_finite"][i]),
        }
        for i in range(steps)
    ]

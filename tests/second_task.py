"""A second task, complete in this file; run as a program, the file trains on it.

    python second_task.py KILL_AFTER [flags of gptjax.train, with --task labelled]

Its rows are bytes with a mask of targets, different in each row, and a label at the end. With
KILL_AFTER above 0 the process kills itself after that step, as soon as a checkpoint is signed.
"""

import os
import runpy
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.config import Config
from gptjax.config.chunks import loss_chunk
from gptjax.data.examples import Example, Examples, ShuffledExamples, TaskData, ValidationSet
from gptjax.model.places import ModelSharding
from gptjax.tokenizers.plain import ByteTokenizer
from gptjax.training.objectives import Batch, Losses, Params, language_modelling
from gptjax.training.tasks import TASKS, Task

LABELS = 4


class Rows(Examples):
    """So many examples, each a function of its number."""

    def __init__(self, first: int, count: int, context: int):
        self.first, self.count, self.context = first, count, context

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng(self.first + index)
        letters = rng.integers(97, 105, self.context + 1, dtype=np.int32)
        counts = (rng.random(self.context) < rng.random()).astype(np.float32)
        label = np.asarray(letters[0] % LABELS, np.int32)
        return {"letters": letters, "counts": counts, "label": label}


class LabelledRows(TaskData):
    """The data of the task: nothing to open."""

    def __init__(self, config: Config):
        self.tokenizer = ByteTokenizer()
        self._rows, self._context = config.batch_rows, config.context
        self.train = Rows(0, 50, config.context)

    def resolved(self, config: Config) -> Config:
        """Bytes."""
        n_vocab = self.tokenizer.n_vocab
        return replace(config, model=replace(config.model, n_vocab=n_vocab))

    def shuffled(self, seed: int) -> ShuffledExamples:
        """Each row once an epoch."""
        return ShuffledExamples(self.train, seed)

    def validation_sets(self) -> list[ValidationSet]:
        """Two of them, neither a multiple of a batch."""
        sizes = {"one": (1000, 13), "two": (2000, 5)}
        return [
            ValidationSet(name, 0.5, Rows(*size, self._context)) for name, size in sizes.items()
        ]

    def fingerprint_until(self, step: int | None = None) -> str:
        """Always the same."""
        return "labelled"

    def announcement(self, step: int) -> list[str]:
        """One line."""
        return [f"data     {len(self.train)} labelled rows"]

    def epochs(self, step: int) -> float:
        """By rows."""
        return step * self._rows / len(self.train)


def losses(config: Config, split: ModelSharding, eot_id: int | None) -> Losses:
    """Of the targets that count, and of the label in place of the last."""
    model = language_modelling(config.model, loss_chunk(config), split, eot_id)

    def labelled(batch: Batch) -> Batch:
        tokens = batch["letters"].at[..., -1].set(batch["label"])
        return {"tokens": tokens, "weights": batch["weights"]}

    def loss(params: Params, batch: Batch, key: Any) -> Any:
        return model.loss(params, labelled(batch), key)

    def row_losses(params: Params, batch: Batch) -> Any:
        return model.row_losses(params, labelled(batch))

    return Losses(loss, row_losses, lambda batch: batch["counts"].at[..., -1].set(1.0))


TASKS["labelled"] = Task(
    lambda config, given: LabelledRows(config), lambda c: Rows(0, 1, c.context)[0], losses
)


def kill_after(step: int) -> None:
    """Let the trainer kill itself from `step` on, once there is something to go on from."""
    from gptjax.training.setup import Setup

    train_steps, run = Setup.train_steps, Path(sys.argv[sys.argv.index("--run-dir") + 1])

    def until_killed(self: Setup, state: Any, call: Any) -> Any:
        if int(np.asarray(state.step)) >= step:
            if any(run.glob("checkpoints/*/INTEGRITY.json")):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.05)  # a save goes on meanwhile
        return train_steps(self, state, call)

    Setup.train_steps = until_killed


if __name__ == "__main__":
    if after := int(sys.argv[1]):
        kill_after(after)
    sys.argv = ["gptjax.train", *sys.argv[2:]]
    runpy.run_module("gptjax.train", run_name="__main__")

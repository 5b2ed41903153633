"""The batch of one step of a run, as text: each row with its loss, and where its tokens lie.

A spike of the loss is often a page of digits, of one character, or of another language.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.base.errors import UserError
from gptjax.base.files import write_atomically
from gptjax.config import Config
from gptjax.config.batches import batch_schedule
from gptjax.config.run_batches import RunBatches
from gptjax.data.examples import Example, Origin, TaskData
from gptjax.runs.directory import RunDir
from gptjax.runs.incidents import ROLLBACK, read_incidents
from gptjax.runs.integrity import signed_content
from gptjax.runs.metrics import read_rows
from gptjax.runs.naming import BATCHES, ROLLBACKS
from gptjax.runs.ranking import CURSOR_FILE
from gptjax.tokenizers.plain import Tokenizer

INDENT = "    "


class ReplayedRow(NamedTuple):
    """A row of a batch."""

    row: int
    """Its number in the order of all rows of the run, from 0."""
    loss: float
    """Nats per weighted token, or per example."""
    weight: float
    """Weighted tokens, or 1 for an example."""
    origin: Origin
    documents: list[str]
    """The text of each document, or of each part of an example, in order."""


def batches_of(run_dir: RunDir, config: Config, step: int) -> tuple[RunBatches, dict[str, Any]]:
    """The batches of a run as far as `step`, and the cursor that knows them.

    It is that of the newest checkpoint, which knows all that happened before. Raises `UserError`
    for a step that the run has not done, and if no cursor can be read.
    """
    saved, rows = run_dir.steps(), read_rows(run_dir.metrics)
    done = max([row["step"] for row in rows] + saved, default=0)
    if step > done:
        raise UserError(
            f"{run_dir.path} has done {done:,} steps, so there is no step {step:,} to replay: give "
            f"one from 1 to {done:,}"
        )
    for number in reversed(saved):
        content = signed_content(run_dir.checkpoints / str(number), CURSOR_FILE)
        if content is None:
            continue
        cursor = json.loads(content)
        if BATCHES not in cursor:  # of an earlier version, in which the batch could not change
            return RunBatches.of(batch_schedule(config)), cursor
        batches = RunBatches.from_lists(cursor[BATCHES])
        taken = [i for i in read_incidents(run_dir.path) if i["kind"] == ROLLBACK]
        if taken and taken[-1]["to"] == number and cursor.get(ROLLBACKS, 0) < len(taken):
            batches = batches.continued(number, taken[-1]["rows"])
        return batches, cursor
    raise UserError(
        f"no checkpoint of {run_dir.path} can be read, so nothing knows which data step {step:,} "
        "had"
    )


def require_data_of(cursor: dict[str, Any], data: TaskData) -> None:
    """Raise `UserError` unless this is the data that the run has read."""
    if cursor["data"] != data.fingerprint_until(cursor["step"]):
        problem = data.other_data(cursor["step"], cursor["data"])
        raise UserError(f"the run {problem}")


def documents_of(example: Example, tokenizer: Tokenizer) -> list[str]:
    """The text of the documents of one row, whatever its task: padding is left out.

    Windows of pretraining are divided where a document begins, and packed rows where their items
    do; a classifier's row has a part for each of its sequences.
    """
    tokens = example["tokens"]
    if "lengths" in example:
        parts = [row[:n] for row, n in zip(tokens, example["lengths"], strict=True)]
    elif "weights" in example:
        learnt = np.flatnonzero(example["weights"])
        end = int(learnt[-1]) + 2 if len(learnt) else len(tokens)
        numbers = example.get("documents", np.zeros(len(tokens), np.int32))[: end - 1]
        parts = np.split(tokens[:end], np.flatnonzero(np.diff(numbers)) + 1)
    else:
        starts = np.flatnonzero(tokens == tokenizer.eot_id)
        parts = [part for part in np.split(tokens, starts) if len(part)]
    return [tokenizer.decode(part.tolist()) for part in parts]


def origin_in_words(origin: Origin) -> str:
    """Where a row comes from, for people.

    >>> origin_in_words({"shard": "data/x/train_000003.bin", "offset": 12345})
    'data/x/train_000003.bin, token 12,345'
    """
    if "shard" in origin:
        return f"{origin['shard']}, token {origin['offset']:,}"
    if "examples" in origin:
        return f"training examples {', '.join(map(str, origin['examples']))}"
    return f"training example {origin['example']}"


def as_lines(rows: Sequence[ReplayedRow], width: int) -> list[str]:
    """Rows in this order, with the beginning of each document, cut to a width in characters."""
    lines = []
    for row in rows:
        lines.append(f"loss {row.loss:.4f}  row {row.row:,}  {origin_in_words(row.origin)}")
        lines += [INDENT + _cut(repr(text)[1:-1], width - len(INDENT)) for text in row.documents]
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(1, width - 3)]}..."


def write_replay(path: Path, step: int, model: str, rows: Sequence[ReplayedRow]) -> None:
    """Write the rows as JSON, with the whole text of their documents."""
    listed = [
        {"row": r.row, "loss": r.loss, "weight": r.weight, **r.origin, "documents": r.documents}
        for r in rows
    ]
    content = {"replay": step, "run": model, "loss": mean_loss(rows), "rows": listed}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def mean_loss(rows: Sequence[ReplayedRow]) -> float:
    """The loss of the whole batch, as a step would record it, without dropout."""
    return sum(r.loss * r.weight for r in rows) / (sum(r.weight for r in rows) or 1.0)

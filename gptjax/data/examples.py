"""The interface between a run and the data of its task.

An example is a dict of numpy arrays, with the same names, shapes and types in all examples of a
task. Two names have a fixed meaning: `weights`, the weight of each target, is added if the examples
do not have it, and IS_REAL is 0 for padding rows of an evaluation batch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from gptjax.config import Config
from gptjax.config.run_batches import RunBatches
from gptjax.data.manifest import Manifest
from gptjax.tokenizers.plain import Tokenizer

Example = dict[str, np.ndarray]
Origin = dict[str, Any]  # a shard and the offset of its first token there, or numbers of examples
IS_REAL = "is_real"


class Examples(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...

    def origin(self, index: int) -> Origin:
        """Where an example comes from: its number, if nothing better is known."""
        return {"example": index}

    def batch(self, own: Sequence[int], together: Sequence[int]) -> Example:
        """The examples `own` as rows of a batch that has those of `together` on all processes."""
        del together
        return stacked([self[index] for index in own])


class EndlessExamples(Protocol):
    """Row r of an endless order of examples, a function of its seed and r alone."""

    def __getitem__(self, row: int, /) -> Example: ...

    def origin(self, row: int) -> Origin:
        """Where the tokens of a row come from; empty for a row that only fills a batch."""
        ...

    def batch(self, own: Sequence[int], together: Sequence[int]) -> Example:
        """The rows `own` of a batch that has the rows `together` on all processes."""
        del together
        return stacked([self[row] for row in own])


def stacked(examples: Sequence[Example]) -> Example:
    """Examples as the rows of one batch."""
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


class ValidationSet(NamedTuple):
    """A fixed validation set, and its share in the loss over all sets.

    If the set has a name, its own loss is recorded too.
    """

    name: str
    share: float
    examples: Examples


class TaskData(Protocol):
    """The data of a config, opened and checked. Methods with a body here are optional."""

    tokenizer: Tokenizer
    manifests: tuple[Manifest, ...] = ()
    """Those of the shards that are read, if the data are shards."""

    def resolved(self, config: Config) -> Config:
        """The config with the tokenizer and vocabulary of the data. Raises `UserError`."""
        ...

    def shuffled(self, seed: int) -> EndlessExamples:
        """Training examples in the endless order of a seed, often a `ShuffledExamples`.

        Raises `UserError` if there are none.
        """
        ...

    def validation_sets(self) -> Sequence[ValidationSet]:
        """One or more sets; shares add up to 1. Raises `UserError` if one is empty."""
        ...

    def fingerprint_until(self, step: int | None = None) -> str:
        """A fingerprint of the data that the first `step` steps read; None means all steps."""
        ...

    def announcement(self, step: int) -> list[str]:
        """Lines for the user about the data before step `step`."""
        ...

    def epochs(self, step: int) -> float:
        """The number of times that the data has been read after `step` steps."""
        ...

    def progress(self, step: int) -> dict[str, float]:
        """More numbers for the row of step `step` in metrics.jsonl, such as epochs by source."""
        del step
        return {}

    @property
    def loss_definition(self) -> str:
        """The weights behind the validation loss; only losses with equal weights are compared."""
        return ""

    def forms(self) -> list[Example]:
        """Examples of all shapes that training has, if there are several, the largest last."""
        return []

    def along(self, batches: RunBatches) -> Self:
        """The same data for a run with these batches, which are not always its config's."""
        del batches
        return self

    def refuse_excess(self) -> None:
        """Raise `UserError` if the run would read some of the data more often than allowed."""

    def keep(self, directory: Path) -> None:
        """Write into the directory of a run that begins what it needs to resume without files."""
        del directory

    def target_bytes(self, example: Example) -> int:
        """Bytes of text behind the targets of an example; 0 if that has no meaning."""
        del example
        return 0

    def other_data(self, step: int, before: str) -> str:
        """Advice to a user whose run read data of fingerprint `before` until `step`."""
        now = self.fingerprint_until(step)
        return f"was trained on other data (fingerprint {before}) than this ({now}): restore it"


class ShuffledExamples(EndlessExamples):
    """An endless shuffled order: each example once an epoch, every epoch in another order.

    Grain shuffles the indices of the examples, lazily, and never sees an example: it would measure
    each one that passes through it, which takes four times as long as reading it.
    """

    def __init__(self, examples: Examples, seed: int):
        import grain  # here, so that compiling a program does not need it

        self._examples = examples
        numbers: Any = grain.MapDataset.range(len(examples))
        self._numbers = numbers.seed(seed).shuffle().repeat()

    def __getitem__(self, row: int) -> Example:
        return self._examples[self._numbers[row]]

    def origin(self, row: int) -> Origin:
        """That of the example in this row."""
        return self._examples.origin(int(self._numbers[row]))

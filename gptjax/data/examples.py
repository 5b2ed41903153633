"""The interface between a run and the data of its task, whatever its examples hold.

An example is a dict of numpy arrays, the same names, shapes and types in all of a task. Names are
the task's own business but for two: `weights`, what each target counts, is added where the examples
do not bring it, and IS_REAL marks the rows of an evaluation batch that are no padding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from gptjax.config import Config
from gptjax.tokenizers.plain import Tokenizer

Example = dict[str, np.ndarray]
IS_REAL = "is_real"


class Examples(Protocol):
    """Random access to a number of examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class EndlessExamples(Protocol):
    """Row r of an endless order of examples, a function of its seed and r alone."""

    def __getitem__(self, row: int, /) -> Example: ...


class ValidationSet(NamedTuple):
    """A fixed set to validate on, and its share in the loss over all sets.

    The loss of a set with a name is recorded by itself too.
    """

    name: str
    share: float
    examples: Examples


class TaskData(Protocol):
    """The data of a config, opened and checked. What has a body here may stay as it is."""

    tokenizer: Tokenizer

    def resolved(self, config: Config) -> Config:
        """The config with what only the data knows: vocabulary, tokenizer. Raises `UserError`."""
        ...

    def shuffled(self, seed: int) -> EndlessExamples:
        """Training examples in the endless order of a seed, often a `ShuffledExamples`.

        Raises `UserError` if there is none.
        """
        ...

    def validation_sets(self) -> Sequence[ValidationSet]:
        """At least one; shares add up to 1. Raises `UserError` if one is empty."""
        ...

    def fingerprint_until(self, step: int | None = None) -> str:
        """A fingerprint of the data that the first `step` steps read; None means all steps."""
        ...

    def announcement(self, step: int) -> list[str]:
        """Lines for the user about the data before step `step`."""
        ...

    def epochs(self, step: int) -> float:
        """How often the data has been read after `step` steps."""
        ...

    def progress(self, step: int) -> dict[str, float]:
        """More numbers for the row of step `step` in metrics.jsonl, like epochs by source."""
        del step
        return {}

    @property
    def loss_definition(self) -> str:
        """The weights behind the validation loss: only losses of the same weights compare."""
        return ""

    def target_bytes(self, example: Example) -> int:
        """Bytes of text behind the targets of an example; 0 where that means nothing."""
        del example
        return 0

    def other_data(self, step: int, before: str) -> str:
        """Advice to a user whose run read data of fingerprint `before` until `step`."""
        now = self.fingerprint_until(step)
        return f"was trained on other data (fingerprint {before}) than this ({now})"


class ShuffledExamples:
    """An endless shuffled order: each example once an epoch, every epoch in another order.

    Grain shuffles the numbers of the examples, lazily, and never sees an example: it would measure
    each that passes through it, which takes four times as long as reading one.
    """

    def __init__(self, examples: Examples, seed: int):
        import grain  # here, so that what only compiles a program does without it

        self._examples = examples
        numbers: Any = grain.MapDataset.range(len(examples))
        self._numbers = numbers.seed(seed).shuffle().repeat()

    def __getitem__(self, row: int) -> Example:
        return self._examples[self._numbers[row]]

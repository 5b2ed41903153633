"""What every evaluation is given: a model, the data, and how much of them to use."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from gptjax.base.errors import UserError
from gptjax.base.terminal import count_bar
from gptjax.data.keeping import Kept
from gptjax.evaluation.scoring import Scorer
from gptjax.generation.loaded import LoadedRun

LM_EVAL_STYLE, LLMC_STYLE, BOTH_STYLES = "lm-eval", "llmc", "both"
Bar = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]


def note_on_stderr(note: str) -> None:
    """Print a note for the user of a command."""
    print(f"note: {note}", file=sys.stderr)


@dataclass(frozen=True)
class Setting:
    """The conditions of a measurement."""

    run: LoadedRun
    """The model with its config and tokenizer."""
    scorer: Scorer
    """Its scorer, with the batch, the type and the context of the measurement."""
    data: str
    """A path, or a data set of the hub."""
    limit: int | None = None
    """Use only so many items or pages, from the beginning, or windows, spread evenly."""
    stride: int | None = None
    """Tokens by which a window moves; None is the whole window."""
    text_field: str | None = None
    """Field of the records that holds the text."""
    style: str | None = None
    """Style of HellaSwag, one of the three above; None is that of lm-evaluation-harness."""
    split: str | None = None
    """Part of the examples to measure, divided as the run did; None takes all."""
    markdown: str | None = None
    """File for responses as Markdown."""
    judge: str | None = None
    """Address of the API that grades responses; None sends nothing."""
    judge_model: str | None = None
    """Name of the model that grades."""
    bar: Bar = count_bar
    """Called with a total and the name of what is counted; gives what counts them."""
    note: Callable[[str], None] = note_on_stderr
    """Called with what a reader of the figures should know about the data."""

    def require_file_of(self, kept: Kept) -> None:
        """Raise `UserError` unless the file of `data` is one that the run divided into splits."""
        if not kept.origin.has_file(Path(self.data)):
            raise UserError(
                f"{self.data} is not the file that {self.run.origin} was trained on, so it has no "
                f"split {self.split}: give that file, unchanged, or leave --split out to measure "
                "all of this one"
            )

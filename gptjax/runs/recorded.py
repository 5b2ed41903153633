"""A run as its directory records it: config, rows, samples and results, for pages about runs.

Nothing here needs a checkpoint, jax or the machine that trained.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from gptjax.config import Config
from gptjax.config.schema import CLASSIFY
from gptjax.runs.accounts import SPENT_ON, DamagedError, Start, read_accounts, seconds_by_kind
from gptjax.runs.curves import smoothed
from gptjax.runs.directory import RunDir
from gptjax.runs.metrics import Row, read_rows
from gptjax.runs.ranking import rank_of

SAMPLE = re.compile(
    r"^## step (\d+)\n\n~~~text\n(.*?)\n~~~\n\n(?=## step |\Z)", re.MULTILINE | re.DOTALL
)
SAID = re.compile(r"\S+ \S+  (model|data|devices|attn|batch|steps|links|trained) +(.*)")


@dataclass(frozen=True)
class Recorded:
    """A run, begun or complete."""

    directory: RunDir
    config: Config
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.directory.path.absolute().name

    @property
    def unit(self) -> str:
        """What losses are means over, and what speed counts."""
        return "example" if self.config.task == CLASSIFY else "token"

    @cached_property
    def fields(self) -> dict[str, None]:
        """The names of all values in its rows, in the order of their first row."""
        return dict.fromkeys(chain.from_iterable(self.rows))

    @property
    def step(self) -> int:
        """The last step with a row; 0 before the first."""
        return self.rows[-1]["step"] if self.rows else 0

    @cached_property
    def validated(self) -> list[Row]:
        """The rows with a validation loss."""
        return [row for row in self.rows if "val_loss" in row]

    @property
    def best(self) -> Row | None:
        """The best validation, by what ranks the checkpoints; of equal ones the first."""
        by = self.config.train.best_by
        ranked = [(rank, row) for row in self.validated if (rank := rank_of(by, row)) is not None]
        return min(ranked, key=lambda pair: pair[0])[1] if ranked else None

    @cached_property
    def tokens(self) -> int:
        """Tokens, or examples, of all steps."""
        return sum(row.get("tokens", 0) for row in self.rows)

    @property
    def rate(self) -> float | None:
        """Tokens, or examples, a second over all steps that were timed."""
        timed = [row for row in self.rows if row.get("tokens_per_second")]
        seconds = sum(row["tokens"] / row["tokens_per_second"] for row in timed)
        return sum(row["tokens"] for row in timed) / seconds if seconds else None

    @property
    def training_loss(self) -> float | None:
        """The mean training loss of the last fiftieth of its steps."""
        losses = [row["train_loss"] for row in self.rows if "train_loss" in row]
        return smoothed(losses)[-1] if losses else None

    @property
    def skipped(self) -> list[int]:
        """The steps that changed no parameter."""
        return [r["step"] for r in self.rows if "learning_rate" in r and "grad_norm" not in r]

    @cached_property
    def starts(self) -> list[Start]:
        """The account of its starts; none if there is no account that can be read."""
        try:
            return read_accounts(self.directory.path)
        except (DamagedError, OSError):
            return []

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of all starts by kind; its last row may know of more than its account."""
        of_rows = (row["seconds"] for row in reversed(self.rows) if "seconds" in row)
        found = [seconds_by_kind(self.starts), dict.fromkeys(SPENT_ON, 0.0) | next(of_rows, {})]
        return max(found, key=lambda seconds: sum(seconds.values()))

    @property
    def restarts(self) -> list[int]:
        """The steps after which it was started again."""
        return [start.from_step for start in self.starts if start.from_step]

    def samples(self) -> list[tuple[int, str]]:
        """Every sampled text with its step, in the order of the file."""
        try:
            content = self.directory.samples.read_bytes().decode("utf-8", "replace")
        except OSError:
            return []
        return [(int(found[1]), found[2]) for found in SAMPLE.finditer(content)]

    def said(self) -> dict[str, str]:
        """What the run said of its model, data and devices when it last started, by log.txt."""
        try:
            with self.directory.log.open(encoding="utf-8", errors="replace") as lines:
                return {found[1]: found[2] for line in lines if (found := SAID.match(line))}
        except OSError:
            return {}


def read_run(path: Path) -> Recorded:
    """The run in a directory; raises `UserError` if there is none, or if its files are damaged."""
    directory = RunDir(path)
    return Recorded(directory, directory.read_config(), read_rows(directory.metrics))

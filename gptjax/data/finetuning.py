"""What both kinds of fine-tuning data are: three sets of examples, read in epochs.

A subclass reads its files, chooses the tokenizer and fills `train`, `validation` and `test`, unless
a run that has begun has kept them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptjax.base.errors import UserError
from gptjax.config import Config
from gptjax.config.courses import misfits, warmup_steps
from gptjax.data.epochs import EpochOrder, steps_per_epoch
from gptjax.data.examples import EndlessExamples, Examples, TaskData, ValidationSet
from gptjax.data.keeping import (
    KEPT,
    Prepared,
    fingerprint_of,
    origin_of,
    read_kept,
    write_kept,
)
from gptjax.tokenizers.bpe import train_bpe
from gptjax.tokenizers.plain import Tokenizer, collect_characters
from gptjax.tokenizers.registry import make_tokenizer


class FineTuningData(TaskData):
    """Examples in three splits, with the tokenizer that made their tokens."""

    tokenizer: Tokenizer
    train: Examples
    validation: Examples
    test: Examples
    fingerprint: str
    """16 hexadecimal digits that change with any token, label or split."""
    rows: int
    """Examples in a step."""
    kept: Path | None = None
    """The file that the examples were read from, if a run that has begun kept them."""
    _keep: Callable[[Path], None] | None = None

    def prepared(
        self,
        config: Config,
        given: Tokenizer | None,
        directory: Path | None,
        kind: Any,
        prepare: Callable[[], tuple[Tokenizer, Prepared]],
    ) -> Prepared:
        """The examples that a begun run keeps in `directory`, or those that `prepare` makes.

        `kind` is the named tuple of an example. Sets tokenizer, fingerprint and rows. Raises
        `UserError` if there is no file.
        """
        if config.data.examples is None:
            raise UserError(
                "data.examples is missing: give the file of examples by --data.examples FILE"
            )
        self.rows, self._source, found = config.batch_rows, config.data.examples, None
        if directory is not None and given is not None:
            kept = read_kept(directory, kind)
            if kept is not None and origin_of(config, given).is_of(kept.origin):
                found = kept.examples
        if found is not None and given is not None:
            self.kept, self.tokenizer = directory and directory / KEPT, given
        else:
            self.tokenizer, found = prepare()
        arrays, facts = found.packed(), found.facts
        self.fingerprint = fingerprint_of(arrays, facts.get("labels", ()))
        if self.kept is None:
            origin = origin_of(config, self.tokenizer)
            self._keep = lambda run: write_kept(run, arrays, facts, origin)
        return found

    def keep(self, directory: Path) -> None:
        """Write the examples beside the run that begins, unless they came from there."""
        if self._keep is not None:
            self._keep(directory)

    def noted(self, notes: Iterable[str]) -> list[str]:
        """Notes about the examples as lines of an announcement, with where they were kept."""
        origin = [] if self.kept is None else [f"read from {self.kept}"]
        return [f"         {note}" for note in (*notes, *origin)]

    def shuffled(self, seed: int) -> EndlessExamples:
        """Every training example once an epoch."""
        return EpochOrder(self.train, self.rows, seed)

    def validation_sets(self) -> list[ValidationSet]:
        """The validation split; raises `UserError` if it is empty."""
        if len(self.validation) == 0:
            raise UserError(
                "there is no example for validation: give a larger data.val_fraction, or "
                "--data.val-examples FILE, or --train.eval-every-steps 0 with "
                "--train.eval-every-epochs None"
            )
        return [ValidationSet("", 1.0, self.validation)]

    def fingerprint_until(self, step: int | None = None) -> str:
        """All steps read all training examples."""
        del step
        return self.fingerprint

    def other_data(self, step: int, before: str) -> str:
        """Advice to a user whose file, or its division, is not that of the run so far."""
        now = self.fingerprint_until(step)
        return (
            f"was trained on other data (fingerprint {before}) than {self._source} gives now "
            f"({now}): restore the file and its flags (--data.*) as they were"
        )

    def epochs(self, step: int) -> float:
        """Epochs after `step` steps."""
        return step / steps_per_epoch(len(self.train), self.rows)


def lengths_line(lengths: Sequence[int]) -> str:
    """The line of an announcement about the lengths that batches are padded to.

    >>> lengths_line([32, 64])
    'lengths  32, 64 tokens: 2 programs'
    """
    programs = f"{len(lengths)} program{'s' * (len(lengths) != 1)}"
    return f"lengths  {', '.join(map(str, lengths))} tokens: {programs}"


def with_course(config: Config, examples: int, context: int) -> Config:
    """The config with its length in steps, for `examples` training examples of `context` tokens.

    Epochs, examples a step and a warm-up as a share become the steps and tokens that all else
    reads. Raises `UserError` if the schedule then does not fit.
    """
    train, rows = config.train, config.batch_rows
    per_epoch, max_steps = steps_per_epoch(examples, rows), train.max_steps
    steps = max_steps
    if train.epochs is not None:
        steps = min(max_steps, math.ceil(train.epochs * per_epoch))
    cadence = {}
    if train.eval_every_epochs is not None:
        every = max(1, round(train.eval_every_epochs * per_epoch))
        cadence = {"eval_every_steps": every, "save_every_steps": every}
    optim = replace(config.optim, warmup_steps=warmup_steps(config.optim, steps))
    train = replace(
        train, context=context, batch_rows=rows, batch_tokens=rows * context, max_steps=steps,
        **cadence,
    )  # fmt: skip
    config = dataclasses.replace(config, train=train, optim=optim)
    if found := [message for _, message in misfits(config)]:
        reason = ""
        if train.epochs is not None and steps < max_steps:
            reason = (
                f"{train.epochs:g} epochs of {examples:,} training examples, {rows} in a step, are "
                f"{steps} steps: "
            )
        raise UserError(reason + "; ".join(found))
    return config


def tokenizer_for(config: Config, given: Tokenizer | None, texts: Iterable[str]) -> Tokenizer:
    """The given tokenizer, or the one that `data.tokenizer` names; `texts` train chars and bpe:N.

    None means bytes.
    """
    name = config.data.tokenizer or "bytes"
    if given is not None:
        return given
    if name == "chars":
        return collect_characters(texts)
    if name.startswith("bpe:"):
        return train_bpe(texts, int(name.removeprefix("bpe:")))
    return make_tokenizer(name)

"""The data of a run: one prepared directory, or a mixture of several, each shuffled alone.

A source is read as often as the plan asks for, each of its windows once an epoch. The window of a
row is a function of seed and row alone, so a mixture resumes, and divides its rows among processes,
like a single source.
"""

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Self

import numpy as np

from gptjax.base.errors import UserError
from gptjax.config import Config
from gptjax.config.batches import batch_schedule
from gptjax.config.names import how_to_prepare_for, parse_change, parse_source
from gptjax.config.run_batches import RunBatches
from gptjax.data.examples import EndlessExamples, Example, TaskData, ValidationSet
from gptjax.data.manifest import TOKENIZER, Manifest, is_prepared, read_manifest, read_tokenizer
from gptjax.data.mixture import MixedWindows, Mixture
from gptjax.data.windows import TokenWindows, WindowExamples
from gptjax.tokenizers.registry import bytes_per_token, tokenizer_identity


class Corpus(TaskData):
    """The data of pretraining, opened and checked; `manifest` is its first source's."""

    def __init__(self, config: Config):
        data, self._batches = config.data, RunBatches.of(batch_schedule(config))
        self._context, self._max_steps = config.context, config.train.max_steps
        self.mixture: Mixture | None = None
        self.changes, self._changes = data.mixture_changes, []
        if not data.mixture:
            self.manifests = (read_manifest(Path(data.path)),)
        else:
            sources = [parse_source(text) for text in data.mixture]
            self._changes = [parse_change(text, len(sources)) for text in self.changes]
            self.mixture = Mixture(sources, self._changes, self._batches.rows_before)
            self.manifests = _read_all([Path(s.path) for s in sources], data.tokenizer)
        self.manifest = self.manifests[0]
        self._windows = [TokenWindows(m, "train", self._context) for m in self.manifests]
        names = [manifest.directory.name for manifest in self.manifests]
        clear = len(set(names)) == len(names)
        self.names = names if clear else [str(m.directory) for m in self.manifests]
        self.tokenizer = read_tokenizer(self.manifest)
        self._bytes_per_token: np.ndarray | None = None

    def resolved(self, config: Config) -> Config:
        """The config with the tokenizer and the vocabulary size of the data."""
        try:
            n_vocab = require_vocabulary(self.manifest, config.model.n_vocab, config.data.tokenizer)
        except UserError as error:
            if config.train.init_from is None:
                raise
            raise UserError(other_tokenizer(self.manifest, config)) from error
        return replace(
            config,
            model=replace(config.model, n_vocab=n_vocab),
            data=replace(config.data, tokenizer=self.manifest.tokenizer),
        )

    def fingerprint_until(self, step: int | None = None) -> str:
        """16 hexadecimal digits that change with any token, and with any weight of a mixture.

        Weights that take effect only after `step` steps are left out.
        """
        if step is None:
            return self._fingerprint(self.changes)
        past = [f"{at}={','.join(map(str, w))}" for at, w in self._changes if at < step]
        return self._fingerprint(past)

    def other_data(self, step: int, before: str) -> str:
        """Advice to a user whose data or weights differ from the run's so far."""
        now = self.fingerprint_until(step)
        if self.mixture is None:
            return (
                f"was trained on other data (fingerprint {before}) than {self.manifest.directory} "
                f"({now}): give that data's --data.path"
            )
        return (
            f"was trained on another mixture up to step {step} (fingerprint {before}) than this "
            f"({now}): give the sources, the weights and their changes before step {step} as in "
            f"its config.json; changes from step {step} on are free"
        )

    def _fingerprint(self, changes: Sequence[str]) -> str:
        if self.mixture is None:
            return self.manifest.fingerprint
        weights = [str(source.weight) for source in self.mixture.sources]
        content = json.dumps([[m.fingerprint for m in self.manifests], weights, changes])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def epochs(self, step: int) -> float:
        """Tokens of the first `step` steps, divided by the tokens of all sources."""
        tokens = sum(manifest.splits["train"].tokens for manifest in self.manifests)
        return self._batches.rows_before(step) * self._context / tokens

    def along(self, batches: RunBatches) -> Self:
        """The same data, whose changes of weights lie where these batches have them."""
        data = copy(self)
        data._batches = batches
        if self.mixture is not None:
            data.mixture = Mixture(self.mixture.sources, self._changes, batches.rows_before)
        return data

    def shuffled(self, seed: int) -> EndlessExamples:
        """The windows of all sources in the endless shuffled order of a seed."""
        if self.mixture is None:
            return self._windows[0].shuffled(seed)
        return MixedWindows(self._windows, self.mixture).shuffled(seed)

    def refuse_excess(self) -> None:
        """Raise `UserError` if a source of a mixture would be read more often than allowed."""
        if self.mixture is None:
            return
        if too_often := [
            f"{name} would be read {epochs:.2f} times, at most {source.max_epochs:g} are allowed"
            for name, source, epochs in zip(
                self.names,
                self.mixture.sources,
                self._epochs_by_source(self._max_steps),
                strict=True,
            )
            if source.max_epochs is not None and epochs > source.max_epochs
        ]:
            raise UserError(
                f"{self._max_steps:,} steps read a source of data.mixture more often than allowed: "
                f"{'; '.join(too_often)}. Lower their weights, or allow more epochs"
            )

    def validation_sets(self) -> list[ValidationSet]:
        """The validation windows of every source; raises `UserError` if one is empty."""
        names = self.names if self.mixture is not None else [""]
        sets = [
            ValidationSet(name, share, WindowExamples(TokenWindows(manifest, "val", self._context)))
            for name, share, manifest in zip(names, self.shares(), self.manifests, strict=True)
        ]
        for (_, _, examples), manifest in zip(sets, self.manifests, strict=True):
            if len(examples) == 0:
                raise UserError(
                    f"{manifest.directory} has {manifest.splits['val'].tokens} validation tokens, "
                    f"fewer than one window of {self._context} + 1 (train.context, or "
                    "model.n_ctx): prepare with a larger --val-fraction, or train with a shorter "
                    "--train.context, or with --train.eval-every-steps 0"
                )
        return sets

    def target_bytes(self, example: Example) -> int:
        """Bytes of text behind the targets of a window."""
        if self._bytes_per_token is None:
            self._bytes_per_token = bytes_per_token(self.tokenizer)
        return int(self._bytes_per_token[example["tokens"][1:]].sum())

    def shares(self) -> list[float]:
        """The share of every source in all rows of the run: its weight in the validation loss."""
        if self.mixture is None:
            return [1.0]
        counts = self.mixture.counts(self._batches.rows_before(self._max_steps))
        return [count / sum(counts) for count in counts]

    @property
    def loss_definition(self) -> str:
        """The weights behind the validation loss; only losses with equal weights are compared."""
        return "" if self.mixture is None else " ".join(f"{share:.6f}" for share in self.shares())

    def announcement(self, step: int) -> list[str]:
        """Lines for the user before step `step`, with shares and epochs of a mixture."""
        if self.mixture is None:
            split, val = self.manifest.splits["train"], self.manifest.splits["val"]
            return [
                f"data     {self.manifest.directory}: {split.tokens:,} training tokens in "
                f"{len(split.shards)} shards, {val.tokens:,} for validation, tokenizer "
                f"{self.manifest.tokenizer}"
            ]
        begin, end = self._epochs_by_source(step), self._epochs_by_source(self._max_steps)
        lines = [
            f"mixture  {share:6.1%} {name}: {manifest.splits['train'].tokens:,} tokens, "
            f"epochs {first:.2f} to {last:.2f}"
            for name, share, manifest, first, last in zip(
                self.names, self.mixture.shares(step), self.manifests, begin, end, strict=True
            )
        ]
        if self.changes:
            lines.append(f"         (new weights from a step on: {', '.join(self.changes)})")
        return lines

    def progress(self, step: int) -> dict[str, float]:
        """Epochs of every source of a mixture after `step` steps, for metrics.jsonl."""
        if self.mixture is None:
            return {}
        done = zip(self.names, self._epochs_by_source(step), strict=True)
        return {f"epochs/{name}": epochs for name, epochs in done}

    def _epochs_by_source(self, step: int) -> list[float]:
        assert self.mixture is not None
        counts = self.mixture.counts(self._batches.rows_before(step))
        return [n / max(1, len(w)) for n, w in zip(counts, self._windows, strict=True)]


def require_vocabulary(manifest: Manifest, n_vocab: int | None, tokenizer: str | None) -> int:
    """The data's vocabulary size; raises `UserError` if the config asks for another."""
    names = (None, manifest.tokenizer, manifest.tokenizer_fingerprint)
    if tokenizer not in names and tokenizer_identity(tokenizer or "") not in names:
        raise UserError(
            f"{manifest.directory} was tokenised with {manifest.tokenizer}, but the "
            f"config says data.tokenizer {tokenizer}: give --data.tokenizer None, or prepare the "
            "data with that tokenizer"
        )
    if n_vocab is not None and n_vocab != manifest.n_vocab:
        raise UserError(
            f"{manifest.directory} has a vocabulary of {manifest.n_vocab} "
            f"({manifest.tokenizer}), but the config says model.n_vocab {n_vocab}: "
            "give --model.n-vocab None"
        )
    return manifest.n_vocab


def other_tokenizer(manifest: Manifest, config: Config) -> str:
    """Advice to a user whose data do not have the tokenizer of the model to start from."""
    model, tokenizer = config.train.init_from, config.data.tokenizer
    assert model is not None
    return (
        f"{manifest.directory} was tokenised with {manifest.tokenizer} ({manifest.n_vocab:,} ids), "
        f"but the model of --train.init-from {model} has another tokenizer "
        f"({config.model.n_vocab:,} ids): {how_to_prepare_for(model, tokenizer)}"
    )


def _read_all(directories: list[Path], tokenizer: str | None) -> tuple[Manifest, ...]:
    """The manifests of all sources; raises a `UserError` that names all missing ones."""
    if missing := [d for d in directories if not is_prepared(d)]:
        if there := [d for d in directories if d not in missing]:
            tokenizer = str(there[0] / TOKENIZER)  # the file itself, which always exists
        commands = [
            f"python -m gptjax.prepare --input FILE... --tokenizer {quote(tokenizer or 'NAME')} "
            f"--out {quote(str(directory))}"
            for directory in missing
        ]
        raise UserError(
            f"data.mixture names {', '.join(map(str, missing))} without prepared data: run\n  "
            + "\n  ".join(commands)
        )
    manifests = tuple(read_manifest(d) for d in directories)
    first = manifests[0]
    for other in manifests[1:]:
        if other.tokenizer_fingerprint != first.tokenizer_fingerprint:
            raise UserError(
                f"a mixture needs one tokenizer, but {first.directory} was tokenised with "
                f"{first.tokenizer} ({first.tokenizer_fingerprint}) and {other.directory} with "
                f"{other.tokenizer} ({other.tokenizer_fingerprint}): prepare one of them with "
                f"--tokenizer DIR/{TOKENIZER} of the other"
            )
    return manifests

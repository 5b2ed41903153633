"""Labelled texts as the input of a classifier, by GPT-1's input transformations.

Radford et al. (2018), section 3.3 and figure 1. Start, delimiter and extract are the three ids
after the vocabulary. Letters: S sequences of an example, T time.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptjax.config import Config
from gptjax.data.examples import Example
from gptjax.data.finetuning import FineTuningData, tokenizer_for, with_course
from gptjax.data.padding import PaddedExamples, padded_lengths
from gptjax.tokenizers.plain import Tokenizer

SPECIAL = 3  # start, delimiter, extract


class Labelled(NamedTuple):
    """An example as it is read: its texts in their order, and its label."""

    texts: tuple[str, ...]
    label: str


class Item(NamedTuple):
    """An example in tokens."""

    sequences: tuple[np.ndarray, ...]
    label: int
    class_weight: float


class LabelledTexts(FineTuningData):
    """The data of a classification."""

    def __init__(self, config: Config, given: Tokenizer | None, kept: Path | None):
        rows = _read(Path(config.data.examples or ""))
        order = np.random.default_rng(config.data.split_seed).permutation(len(rows))
        n_val = round(config.data.val_fraction * len(rows))
        n_test = round(config.data.test_fraction * len(rows))
        n_train = len(rows) - n_val - n_test
        train, val, test = (
            [rows[i] for i in order[a:b]]
            for a, b in ((0, n_train), (n_train, n_train + n_val), (n_train + n_val, None))
        )
        self.labels = tuple(sorted({row.label for row in train}))
        self.tokenizer = tokenizer_for(config, given, (t for row in train for t in row.texts))
        self._classify, most = config.classify, config.context
        items = [[self._item(row, most) for row in part] for part in (train, val, test)]
        self.longest = max(len(s) for part in items for item in part for s in item.sequences)
        self.train, self.validation, self.test = map(self._padded, items)
        self.counts = Counter(row.label for row in train)
        self.fingerprint = hashlib.sha256(repr(items).encode()).hexdigest()[:16]
        self.rows = config.batch_rows

    def _item(self, row: Labelled, most: int) -> Item:
        start, _, extract = range(self.tokenizer.n_vocab, self.tokenizer.n_vocab + SPECIAL)
        tokens = self.tokenizer.encode(row.texts[0]).astype(np.int32)
        if self._classify.read == "extract":
            tokens = np.concatenate([[start], tokens[: most - 2], [extract]])
        return Item((tokens[:most].astype(np.int32),), self.labels.index(row.label), 1.0)

    def _padded(self, items: Sequence[Item]) -> PaddedExamples:
        lengths = [max(map(len, item.sequences)) for item in items]
        return PaddedExamples(items, lengths, self.longest, pad)

    def resolved(self, config: Config) -> Config:
        """The config with the classes, special tokens, tokenizer and length of the data."""
        special = SPECIAL if config.classify.read == "extract" else 0
        model = replace(
            config.model,
            n_vocab=self.tokenizer.n_vocab,
            n_special=special,
            n_classes=1 if config.classify.form == "choice" else len(self.labels),
        )
        config = replace(
            config,
            model=model,
            data=replace(config.data, tokenizer=self.tokenizer.name),
            classify=replace(config.classify, labels=self.labels),
        )
        return with_course(config, len(self.train), self.longest)

    def forms(self) -> list[Example]:
        """One for each length."""
        item = self.train._items[0]
        return [pad(_shortened(item, n), n) for n in padded_lengths(self.longest)]

    def announcement(self, step: int) -> list[str]:
        """Sizes of the splits and of the classes."""
        del step
        sizes = ", ".join(f"{n:,} {label}" for label, n in sorted(self.counts.items()))
        return [
            f"data     {len(self.train):,} training examples ({sizes}), {len(self.validation):,} "
            f"for validation, {len(self.test):,} for the test, tokenizer {self.tokenizer.name}"
        ]


def _shortened(item: Item, length: int) -> Item:
    return item._replace(sequences=tuple(s[:length] for s in item.sequences))


def pad(item: Item, length: int) -> Example:
    """An example of `length` tokens a sequence, padded at the end."""
    tokens_ST = np.zeros((len(item.sequences), length), np.int32)
    for row, sequence in zip(tokens_ST, item.sequences, strict=True):
        row[: len(sequence)] = sequence
    return {
        "tokens": tokens_ST,
        "lengths": np.array([len(s) for s in item.sequences], np.int32),
        "label": np.array(item.label, np.int32),
        "class_weight": np.array(item.class_weight, np.float32),
        "weights": np.array(1.0, np.float32),
    }


def form_of_labelled(config: Config) -> Example:
    """An example as long as the longest, made without data."""
    sequences = {"similarity": 2, "choice": 2}.get(config.classify.form, 1)
    empty = np.zeros(1, np.int32)
    return pad(Item((empty,) * sequences, 0, 1.0), config.context)


def _read(path: Path) -> list[Labelled]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Labelled((row[1],), row[0])
            for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]

"""Instructions and their responses as rows of tokens, with weights on the responses."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptjax.config import Config
from gptjax.data.examples import Example
from gptjax.data.finetuning import FineTuningData, tokenizer_for, with_course
from gptjax.data.padding import PaddedExamples, padded_lengths
from gptjax.data.templates import alpaca_turns
from gptjax.tokenizers.plain import Tokenizer


class Item(NamedTuple):
    """An example in tokens, one more than it has targets, and the weight of each target."""

    tokens: np.ndarray
    weights: np.ndarray


class Instructions(FineTuningData):
    """The data of instruction tuning."""

    def __init__(self, config: Config, given: Tokenizer | None, kept: Path | None):
        records = json.loads(Path(config.data.examples or "").read_text())
        order = np.random.default_rng(config.data.split_seed).permutation(len(records))
        n_val = round(config.data.val_fraction * len(records))
        n_test = round(config.data.test_fraction * len(records))
        n_train = len(records) - n_val - n_test
        train, val, test = (
            [records[i] for i in order[a:b]]
            for a, b in ((0, n_train), (n_train, n_train + n_val), (n_train + n_val, None))
        )
        texts = (value for record in train for value in record.values())
        self.tokenizer = tokenizer_for(config, given, texts)
        items = [[self._item(r, config.context) for r in part] for part in (train, val, test)]
        self.longest = max(len(item.weights) for part in items for item in part)
        self.train, self.validation, self.test = map(self._padded, items)
        self.fingerprint = hashlib.sha256(repr(items).encode()).hexdigest()[:16]
        self.rows = config.batch_rows

    def _item(self, record: dict[str, str], most: int) -> Item:
        tokens, weights = [], []
        for turn in alpaca_turns(record["instruction"], record["input"], record["output"]):
            ids = self.tokenizer.encode(turn.text)
            if turn.is_response:
                ids = np.append(ids, self.tokenizer.eot_id)
            tokens.append(ids)
            weights.append(np.full(len(ids), float(turn.is_response), np.float32))
        joined = np.concatenate(tokens).astype(np.int32)[: most + 1]
        return Item(joined, np.concatenate(weights)[1 : most + 1])

    def _padded(self, items: Sequence[Item]) -> PaddedExamples:
        return PaddedExamples(items, [len(item.weights) for item in items], self.longest, pad)

    def resolved(self, config: Config) -> Config:
        """The config with the tokenizer and the length of the data."""
        config = replace(
            config,
            model=replace(config.model, n_vocab=self.tokenizer.n_vocab),
            data=replace(config.data, tokenizer=self.tokenizer.name),
            instruct=replace(config.instruct, template="alpaca"),
        )
        return with_course(config, len(self.train), self.longest)

    def forms(self) -> list[Example]:
        """One for each length."""
        empty = Item(np.zeros(1, np.int32), np.zeros(0, np.float32))
        return [pad(empty, n) for n in padded_lengths(self.longest)]

    def announcement(self, step: int) -> list[str]:
        """Sizes of the splits."""
        del step
        return [
            f"data     {len(self.train):,} training examples, {len(self.validation):,} for "
            f"validation, {len(self.test):,} for the test, tokenizer {self.tokenizer.name}"
        ]


def pad(item: Item, length: int) -> Example:
    """A row of one example with `length` targets, padded at the end."""
    tokens_T, weights_T = np.zeros(length + 1, np.int32), np.zeros(length, np.float32)
    tokens_T[: len(item.tokens)], weights_T[: len(item.weights)] = item.tokens, item.weights
    return {"tokens": tokens_T, "weights": weights_T}


def form_of_instructions(config: Config) -> Example:
    """A row with the shapes and types of all, made without data."""
    return pad(Item(np.zeros(1, np.int32), np.zeros(0, np.float32)), config.context)

"""Instructions and their responses as rows of tokens, with weights on what is to be learnt.

An example longer than the context loses its end: the last tokens of its response. So the end of a
conversation is not learnt from it. If then nothing is left to learn, the file is refused.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gptjax.base.errors import UserError
from gptjax.config import Config
from gptjax.data.conversations import Conversation, Conversations, read_conversations
from gptjax.data.examples import Example, Examples
from gptjax.data.finetuning import FineTuningData, tokenizer_for, with_course
from gptjax.data.packing import Item, PackedRows, packed_row, row_length
from gptjax.data.padding import PaddedExamples, padded_lengths
from gptjax.data.templates import turn_tokens, turns_of
from gptjax.tokenizers.plain import Tokenizer

_NAMES = ("training examples", "for validation", "for the test")
EMPTY = Item(np.zeros(1, np.int32), np.zeros(0, np.float32))


class Instructions(FineTuningData):
    """The data of instruction tuning."""

    template: str
    """The words around its conversations: alpaca or chat."""
    test_conversations: Sequence[Conversation]
    """Those of the test split, in its order."""

    def __init__(self, config: Config, given: Tokenizer | None, kept: Path | None):
        read, parts = _splits(config)
        self._instruct, self.rows = config.instruct, config.batch_rows
        chosen = config.instruct.template
        self.template = read.template if chosen == "auto" else chosen
        self.tokenizer = tokenizer_for(config, given, self._texts(parts[0]))
        self.test_conversations = parts[2]
        items = [[self._item(conversation) for conversation in part] for part in parts]
        self.n_cut = self._check(items, config.context)
        items = [[_cut(item, config.context) for item in part] for part in items]
        self.longest = max((len(item.weights) for part in items for item in part), default=1)
        self._is_packed = config.instruct.lengths == "pack"
        if self._is_packed:
            sizes = [len(item.tokens) for item in items[0]]
            needed = row_length(sizes, config.context, self.rows, config.train.seed)
            self.longest = max(self.longest, needed)
        self._items, seed = items, config.train.seed
        self.train, self.validation, self.test = (self._rows_of(part, seed) for part in items)
        self.fingerprint = _fingerprint(self.template, items)

    def _texts(self, conversations: Iterable[Conversation]) -> Iterator[str]:
        for conversation in conversations:
            yield "".join(turn.text for turn in turns_of(self.template, conversation))

    def _item(self, conversation: Conversation) -> Item:
        """The tokens of a conversation, and which of them are learnt."""
        turns = turns_of(self.template, conversation)
        last, eot = len(turns) - 1, self.tokenizer.eot_id
        tokens, learnt = [], []
        for number, turn in enumerate(turns):
            ids = turn_tokens(self.tokenizer, turn)
            is_learnt = {
                "all": True,
                "responses": turn.is_response,
                "last_response": turn.is_response and number == last,
            }[self._instruct.loss_on]
            weights = np.full(len(ids), is_learnt, np.float32)
            # gpt1 writes unknown characters as its end-of-text: only a real end is learnt
            is_text = np.arange(len(ids)) < len(ids) - turn.is_response
            weights[is_text & (ids == eot)] = 0.0
            tokens.append(ids)
            learnt.append(weights)
        return Item(np.concatenate(tokens), np.concatenate(learnt)[1:])

    def _check(self, items: Sequence[Sequence[Item]], most: int) -> int:
        """The number of examples that are cut; raises `UserError` if a cut leaves nothing."""
        long = [item for part in items for item in part if len(item.weights) > most]
        if bare := [item for item in long if not item.weights[:most].any()]:
            first = self.tokenizer.decode(bare[0].tokens[:40].tolist())
            raise UserError(
                f"{len(bare)} of the examples have no response left within the context of {most} "
                f"tokens. The first has {len(bare[0].tokens)} tokens and begins with {first!r}: "
                "leave them out, or give a longer --train.context, up to the model's n_ctx"
            )
        return len(long)

    def _rows_of(self, items: Sequence[Item], seed: int) -> Examples:
        if self._is_packed:
            return PackedRows(items, self.longest, seed)
        return PaddedExamples(items, [len(item.weights) for item in items], self.longest, pad)

    def resolved(self, config: Config) -> Config:
        """The config with the tokenizer, the template and the length of the data."""
        config = replace(
            config,
            model=replace(config.model, n_vocab=self.tokenizer.n_vocab),
            data=replace(config.data, tokenizer=self.tokenizer.name),
            instruct=replace(config.instruct, template=self.template),
        )
        return with_course(config, len(self.train), self.longest)

    def forms(self) -> list[Example]:
        """One for each length; packed rows have one length."""
        if self._is_packed:
            return []
        return [pad(EMPTY, length) for length in padded_lengths(self.longest)]

    def announcement(self, step: int) -> list[str]:
        """Sizes of the splits, how they fill their rows, and what was cut."""
        del step
        sizes = [f"{len(part):,} {name}" for name, part in zip(_NAMES, self._items, strict=True)]
        learnt = sum(float(item.weights.sum()) for item in self._items[0])
        tokens = sum(len(item.weights) for item in self._items[0])
        lines = [
            f"data     {', '.join(sizes)}; {self.template} template, tokenizer "
            f"{self.tokenizer.name}",
            f"         {tokens:,} tokens to train on, {learnt / max(1, tokens):.0%} of them learnt "
            f"({self._instruct.loss_on})",
        ]
        if isinstance(self.train, PackedRows):
            lines.append(
                f"         packed into {len(self.train):,} rows of {self.longest:,} tokens, "
                f"{self.train.filled:.1%} filled"
            )
        else:
            lengths = ", ".join(map(str, padded_lengths(self.longest)))
            lines.append(f"         padded to the longest of a batch, to one of {lengths} tokens")
        if self.n_cut:
            lines.append(f"         {self.n_cut:,} are longer than the context and lose their end")
        return lines

    @property
    def loss_definition(self) -> str:
        """The tokens that are learnt."""
        return f"loss on {self._instruct.loss_on}"


def _cut(item: Item, most: int) -> Item:
    return Item(item.tokens[: most + 1], item.weights[:most])


def pad(item: Item, length: int) -> Example:
    """A row of one example with `length` targets, padded at the end."""
    tokens_T, weights_T = np.zeros(length + 1, np.int32), np.zeros(length, np.float32)
    tokens_T[: len(item.tokens)], weights_T[: len(item.weights)] = item.tokens, item.weights
    return {"tokens": tokens_T, "weights": weights_T}


def form_of_instructions(config: Config) -> Example:
    """A row with the shapes and types of all, made without data."""
    if config.instruct.lengths == "pack":
        return packed_row([], config.context)
    return pad(EMPTY, config.context)


def _fingerprint(template: str, parts: Sequence[Sequence[Item]]) -> str:
    """16 hexadecimal digits of all tokens and weights, split by split."""
    digest = hashlib.sha256(template.encode())
    for part in parts:
        digest.update(f"{len(part)}".encode())
        for item in part:
            digest.update(f"{len(item.tokens)}".encode() + item.tokens.tobytes())
            digest.update(item.weights.tobytes())
    return digest.hexdigest()[:16]


def _splits(config: Config) -> tuple[Conversations, list[list[Conversation]]]:
    """The conversations of training, validation and test."""
    data = config.data
    read = read_conversations(Path(data.examples or ""))
    order = np.random.default_rng(data.split_seed).permutation(len(read.found))
    n_val, n_test = (round(f * len(order)) for f in (data.val_fraction, data.test_fraction))
    ends = np.cumsum([len(order) - n_val - n_test, n_val])
    return read, [[read.found[i] for i in part] for part in np.split(order, ends)]

"""Instructions and their responses as rows of tokens, with weights on what is to be learnt.

An example longer than the context loses its end: the last tokens of its response. So the end of a
conversation is not learnt from it. If then nothing is left to learn, the example is left out; in
the test split it stays, since a prompt that long can be responded to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.base.errors import UserError
from gptjax.config import Config
from gptjax.data.conversations import Conversation, read_conversations
from gptjax.data.examples import Example, Examples
from gptjax.data.finetuning import FineTuningData, lengths_line, tokenizer_for, with_course
from gptjax.data.keeping import Prepared
from gptjax.data.packing import Item, PackedRows, packed_row, row_length
from gptjax.data.padding import PaddedExamples
from gptjax.data.splitting import Key, about_cuts, about_repeats, divide_files
from gptjax.data.templates import ASSISTANT, Message, turn_tokens, turns_of
from gptjax.tokenizers.plain import Tokenizer

_NAMES = ("training examples", "for validation", "for the test")
EMPTY = Item(np.zeros(1, np.int32), np.zeros(0, np.float32))


class Instructions(FineTuningData):
    """The data of instruction tuning; raises `UserError` for files that make none."""

    template: str
    """The words around its conversations: alpaca or chat."""
    test_conversations: Sequence[Conversation]
    """Those of the test split that the run responds to at its end."""

    def __init__(self, config: Config, given: Tokenizer | None, kept: Path | None):
        def prepare() -> tuple[Tokenizer, Prepared]:
            return _prepared(config, given)

        found = self.prepared(config, given, kept, Item, prepare)
        self.template = found.facts["template"]
        self._notes: list[str] = found.facts["notes"]
        self.test_conversations = held_out_conversations(found.facts)[
            : config.instruct.test_responses
        ]
        self.items: tuple[Sequence[Item], ...] = found[:3]
        self.longest = max(len(item.weights) for part in self.items for item in part)
        self._instruct, self._seed = config.instruct, config.train.seed
        if self._is_packed:
            sizes = [len(item.tokens) for item in found.train]
            needed = row_length(sizes, config.context, self.rows, self._seed)
            self.longest = max(self.longest, needed)
        self.train, self.validation, self.test = map(self._rows_of, self.items)

    @property
    def _is_packed(self) -> bool:
        return self._instruct.lengths == "pack"

    def _rows_of(self, items: Sequence[Item]) -> Examples:
        if self._is_packed:
            return PackedRows(items, self.longest, self._seed)
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
        return self.train.forms() if isinstance(self.train, PaddedExamples) else []

    def announcement(self, step: int) -> list[str]:
        """Sizes of the splits, how they fill their rows, and what was cut."""
        del step
        sizes = [f"{len(part):,} {name}" for name, part in zip(_NAMES, self.items, strict=True)]
        learnt = sum(float(item.weights.sum()) for item in self.items[0])
        tokens = sum(len(item.weights) for item in self.items[0])
        lines = [
            f"data     {', '.join(sizes)}; {self.template} template, tokenizer "
            f"{self.tokenizer.name}",
            f"         {tokens:,} tokens to train on, {learnt / max(1, tokens):.0%} of them learnt "
            f"({self._instruct.loss_on})",
        ]
        if isinstance(self.train, PackedRows):
            lines.append(
                f"lengths  packed into {len(self.train):,} rows of {self.longest:,} tokens, "
                f"{self.train.filled:.1%} filled"
            )
        else:
            lines.append(lengths_line([form["weights"].size for form in self.forms()]))
        return lines + self.noted(self._notes)

    @property
    def loss_definition(self) -> str:
        """The tokens that are learnt."""
        return f"loss on {self._instruct.loss_on}"


def held_out_conversations(facts: Mapping[str, Any]) -> list[Conversation]:
    """The conversations of the test split, from the facts that a run keeps of its examples."""
    return [tuple(Message(*message) for message in messages) for messages in facts["test"]]


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


def _prepared(config: Config, given: Tokenizer | None) -> tuple[Tokenizer, Prepared]:
    """Read, divide and tokenise the files of a config."""
    data, chosen = config.data, config.instruct.template
    names = data.examples, data.val_examples, data.test_examples
    files = [None if name is None else read_conversations(Path(name)) for name in names]
    read = [file for file in files if file is not None]
    template = read[0].template if chosen == "auto" else chosen
    rows = [None if file is None else file.found for file in files]
    parts = divide_files(rows, _asked, lambda _: None, data)
    texts = (turn.text for chat in parts[0] for turn in turns_of(template, chat))
    tokenizer = tokenizer_for(config, given, texts)
    items = [
        [_item(tokenizer, template, config.instruct.loss_on, chat) for chat in part]
        for part in parts
    ]
    asked = [_asked(chat) for file in read for chat in file.found]
    notes = about_repeats(asked, sum(map(len, parts)), "prompt")
    sources = {name: file for name, file in zip(names, rows, strict=True) if name and file}
    notes += _leave_out(items, parts, sources, config.context)
    n_cut = sum(len(item.weights) > config.context for part in items for item in part)
    notes += about_cuts(n_cut, config.context, "the response")
    items = [[_cut(item, config.context) for item in part] for part in items]
    facts = {"template": template, "notes": notes, "test": parts[2]}
    return tokenizer, Prepared(items[0], items[1], items[2], facts)


def _asked(conversation: Conversation) -> Key:
    """What makes two examples the same: all that the model is given, whatever it responds."""
    return tuple(x for m in conversation if m.role != ASSISTANT for x in (m.content, m.input))


def _item(tokenizer: Tokenizer, template: str, loss_on: str, chat: Conversation) -> Item:
    """The tokens of a conversation, and which of them are learnt."""
    turns = turns_of(template, chat)
    last, tokens, learnt = len(turns) - 1, [], []
    for number, turn in enumerate(turns):
        ids = turn_tokens(tokenizer, turn)
        is_learnt = {
            "all": True,
            "responses": turn.is_response,
            "last_response": turn.is_response and number == last,
        }[loss_on]
        weights = np.full(len(ids), is_learnt, np.float32)
        # gpt1 writes unknown characters as its end-of-text: only a real end is learnt
        is_text = np.arange(len(ids)) < len(ids) - turn.is_response
        weights[is_text & (ids == tokenizer.eot_id)] = 0.0
        tokens.append(ids)
        learnt.append(weights)
    return Item(np.concatenate(tokens), np.concatenate(learnt)[1:])


def _leave_out(
    items: list[list[Item]],
    parts: Sequence[Sequence[Conversation]],
    sources: Mapping[str, Sequence[Conversation]],
    most: int,
) -> list[str]:
    """Take what has nothing to learn within `most` tokens out of training and validation.

    Returns a note about it; raises `UserError` if nothing is left to train on.
    """
    bare: list[tuple[int, Conversation]] = []
    counts = []
    for number, part in enumerate(items[:2]):
        is_bare = [len(x.weights) > most and not x.weights[:most].any() for x in part]
        pairs = zip(part, parts[number], strict=True)
        lost = [(len(x.weights), chat) for x, chat in compress(pairs, is_bare)]
        items[number] = [x for x, out in zip(part, is_bare, strict=True) if not out]
        counts += [f"{len(lost):,} {_NAMES[number]}"] if lost else []
        bare += lost
    if not bare:
        return []
    longest, chat = max(bare, key=lambda found: found[0])
    name, record = next(
        (name, number)
        for name, found in sources.items()
        for number, other in enumerate(found, 1)
        if other == chat
    )
    note = (
        f"no response within the context of {most} tokens. The longest, record {record} of {name}, "
        f"needs --train.context {longest}, or as much of it as the model's n_ctx allows"
    )
    if not items[0]:
        raise UserError(f"the training examples have {note}")
    return [f"{' and '.join(counts)} left out: {note}"]


def _cut(item: Item, most: int) -> Item:
    return Item(item.tokens[: most + 1], item.weights[:most])

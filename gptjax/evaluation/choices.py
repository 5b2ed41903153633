"""Multiple choice: which of the texts does the model find the most likely after the context?

Any JSON lines file will do, a row `{"context": "...", "choices": ["...", "..."], "label": 0}`. The
answer of `acc` is the choice of the highest log-probability. `acc_norm` divides it by the choice's
length in characters, as lm-evaluation-harness does, and `acc_norm_tokens` by its length in tokens,
as llm.c and build-nanogpt do under the name of acc_norm.

Reference, MMLU in the completion style of llm.c (dev/data/mmlu.py, 14,042 items, acc_norm by
tokens): GPT-2 124M acc .2557, acc_norm .2721; 1558M .2927, .3035.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gptjax.evaluation.estimates import Figures
from gptjax.evaluation.pairs import Pair, requests_of
from gptjax.evaluation.records import (
    label_field,
    read_records,
    text_field,
    text_list_field,
)
from gptjax.evaluation.scoring import Request, Score
from gptjax.evaluation.setting import Setting
from gptjax.tokenizers.plain import Tokenizer


class Question(NamedTuple):
    """A context, the texts that may follow, and the number of the right one."""

    context: str
    choices: tuple[str, ...]
    """The texts whose characters count for `acc_norm`."""
    label: int
    place: str
    """Where it stands in its file, in words for messages."""


@dataclass(frozen=True)
class Answers:
    """The scores of every choice; each list has one tuple a question."""

    labels: list[int]
    logprobs: list[tuple[float, ...]]
    """Log-probability of each choice, in nats."""
    tokens: list[tuple[int, ...]]
    """Tokens of each choice."""
    characters: list[tuple[int, ...]]
    """Characters of each choice."""

    def accuracy(self, name: str, lengths: Sequence[tuple[int, ...]] | None = None) -> Figures:
        """The share of questions whose likeliest choice is right, and its standard error.

        `lengths` divide the log-probabilities. The first of equal choices is taken.
        """
        divisors = lengths or [(1,) * len(logprobs) for logprobs in self.logprobs]
        best = [
            int(np.argmax(np.array(logprobs) / np.array(by)))
            for logprobs, by in zip(self.logprobs, divisors, strict=True)
        ]
        right = [choice == label for choice, label in zip(best, self.labels, strict=True)]
        share = sum(right) / len(right)
        return {name: share, f"{name}_stderr": share_stderr(share, len(right))}


def share_stderr(share: float, items: int) -> float | None:
    """Standard error of a share of right answers, as lm-evaluation-harness gives it.

    It is the sample's standard deviation, with `items - 1`, over the root of `items`; None for one.

    >>> round(share_stderr(0.5, 101) or 0, 6)
    0.05
    """
    return math.sqrt(share * (1 - share) / (items - 1)) if items > 1 else None


def read_questions(data: str, limit: int | None = None) -> list[Question]:
    """Read questions from JSON lines or Parquet, the first `limit` if it is not None.

    `label` is the number of the right choice from 0, its digits, or its text. Raises a `UserError`
    that lists the rows that are wrong.
    """

    def read(row: dict[str, Any], place: str) -> Question:
        context, choices = text_field(row, "context"), text_list_field(row, "choices")
        return Question(context, choices, label_field(row, "label", choices), place)

    return read_records(data, read, limit)


def joined(context: str, choice: str) -> str:
    """The choice with a blank before it, unless white space or the beginning of a text is there.

    >>> joined("A cat", "sleeps"), joined("Answer:\\n", "B"), joined("", "B")
    (' sleeps', 'B', 'B')
    """
    is_apart = not context or context[-1].isspace() or choice[0].isspace()
    return choice if is_apart else " " + choice


def requests_for(
    tokenizer: Tokenizer, questions: Sequence[Question], context: int, apart: bool = False
) -> list[Request]:
    """The requests of all choices of all questions; arguments and errors of `requests_of`."""
    pairs = (
        Pair(question.context, joined(question.context, choice), question.place)
        for question in questions
        for choice in question.choices
    )
    return requests_of(tokenizer, pairs, context, apart)


def answers_of(
    questions: Sequence[Question], requests: Sequence[Request], scores: Sequence[Score]
) -> Answers:
    """Divide the scores of `requests_for` among the questions again."""
    logprobs, tokens, at = [], [], 0
    for question in questions:
        end = at + len(question.choices)
        logprobs.append(tuple(score.logprob for score in scores[at:end]))
        tokens.append(tuple(len(request.continuation) for request in requests[at:end]))
        at = end
    characters = [tuple(map(len, question.choices)) for question in questions]
    return Answers([question.label for question in questions], logprobs, tokens, characters)


def measure_choices(setting: Setting) -> Figures:
    """`acc`, `acc_norm` and `acc_norm_tokens` with standard errors, and `items`.

    Texts are encoded as lm-evaluation-harness does. Raises `UserError` for data it cannot use.
    """
    questions = read_questions(setting.data, setting.limit)
    requests = requests_for(setting.run.tokenizer, questions, setting.scorer.context)
    with setting.bar(len(requests), "choices") as progress:
        answers = answers_of(questions, requests, setting.scorer.score(requests, progress))
    return {
        **answers.accuracy("acc"),
        **answers.accuracy("acc_norm", answers.characters),
        **answers.accuracy("acc_norm_tokens", answers.tokens),
        "items": len(questions),
    }

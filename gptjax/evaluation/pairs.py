"""Contexts and continuations as tokens, in the two ways in which others cut them.

The way of lm-evaluation-harness encodes the whole text and cuts it after the context's tokens; the
way of llm.c encodes both parts by themselves.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gptjax.base.errors import UserError
from gptjax.evaluation.scoring import Request
from gptjax.tokenizers.plain import Tokenizer

SHOWN = 5  # mistakes of a file that are listed


class Pair(NamedTuple):
    """A text, a text to score after it, and where they come from."""

    context: str
    continuation: str
    place: str
    """A file and a line, in words for messages."""


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """The tokens of a pair, as lm-evaluation-harness cuts them (`TemplateLM._encode_pair`).

    White space at the end of the context belongs to the continuation, because a byte-level BPE
    joins it to the next word. The whole text is encoded, and what comes after as many tokens as the
    context has alone is the continuation. An empty context is the end-of-text token.

    >>> from gptjax.tokenizers.plain import ByteTokenizer
    >>> encode_pair(ByteTokenizer(), "a ", "b"), encode_pair(ByteTokenizer(), "", "b")
    (Request(context=[97], continuation=[32, 98]), Request(context=[256], continuation=[98]))
    """
    bare = context.rstrip()
    whole = tokenizer.encode(context + continuation).tolist()
    if not bare:
        return Request([tokenizer.eot_id], whole)
    tokens = tokenizer.encode(bare).tolist()
    return Request(tokens or [tokenizer.eot_id], whole[len(tokens) :])


def encode_apart(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """The tokens of a pair, each text encoded by itself, as in llm.c and build-nanogpt."""
    tokens = tokenizer.encode(context).tolist() or [tokenizer.eot_id]
    return Request(tokens, tokenizer.encode(continuation).tolist())


def requests_of(
    tokenizer: Tokenizer, pairs: Iterable[Pair], context: int, apart: bool = False
) -> list[Request]:
    """Encode every pair for a model that reads `context` tokens.

    Raises a `UserError` that lists the pairs that cannot be scored: nothing is left of the
    continuation, it is longer than the model's context, or the tokenizer cannot encode it.
    """
    encode = encode_apart if apart else encode_pair
    requests, problems = [], []
    for pair in pairs:
        try:
            request = encode(tokenizer, pair.context, pair.continuation)
        except UserError as error:
            problems.append(f"{pair.place}: {error}")
            continue
        requests.append(request)
        if not request.continuation:
            problems.append(f"{pair.place}: no token is left of {pair.continuation!r}")
        elif len(request.continuation) > context:
            problems.append(
                f"{pair.place}: a text to score has {len(request.continuation)} tokens, and the "
                f"model reads {context}"
            )
    refuse(problems, "the data cannot be scored with this model")
    return requests


def refuse(problems: Sequence[str], what: str) -> None:
    """Raise a `UserError` with the first of the problems and their number, if there are any."""
    if problems:
        rest = len(problems) - SHOWN
        more = [f"... and {rest} more"] if rest > 0 else []
        listed = "".join(f"\n  - {problem}" for problem in [*problems[:SHOWN], *more])
        raise UserError(f"{what}:{listed}")

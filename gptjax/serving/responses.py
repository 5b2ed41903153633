"""The JSON of answers, in the form of OpenAI's `text_completion` and `list` of models."""

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gptjax.generation.requests import Token
from gptjax.serving.transcript import Spoken
from gptjax.tokenizers.bpe import EOT
from gptjax.tokenizers.plain import Tokenizer

IMPOSSIBLE = -9999.0  # a log-probability that JSON can hold in place of -inf, as OpenAI's


class TokenTexts:
    """The text of each token for log-probabilities; tokens of the same text stay apart."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, token: int) -> str:
        """The text; `bytes:\\\\x..` for a part of a character, and `token_id:N` for no text."""
        if token == self._tokenizer.eot_id:
            return EOT
        raw = self._tokenizer.token_bytes(token)
        try:
            return raw.decode() or f"token_id:{token}"
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def raw(self, token: int) -> list[int] | None:
        """The bytes of a token; None for end-of-text, which has no text."""
        if token == self._tokenizer.eot_id:
            return None
        return list(self._tokenizer.token_bytes(token))

    def top(self, token: Token, count: int) -> dict[str, float]:
        """The `count` most likely tokens and the token itself, most likely first.

        Of two tokens with the same text, the less likely one is called `token_id:N`.
        """
        found: dict[str, float] = {}
        chosen = (token.id, token.logprob)
        likely = [chosen if i == token.id else (i, logprob) for i, logprob in token.top[:count]]
        for i, logprob in likely if chosen in likely else [*likely, chosen]:
            text = self(i)
            found[text if text not in found else f"token_id:{i}"] = finite(logprob)
        return found


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, IMPOSSIBLE)


def logprobs_of(texts: TokenTexts, spoken: Iterable[Spoken], count: int) -> dict[str, list[Any]]:
    """The log-probabilities of tokens with `count` alternatives each; offsets are in characters.

    A token whose logprob is nan is the first of a prompt: nothing says how likely it is.
    """
    lists: dict[str, list[Any]] = {
        name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
    for token, offset in spoken:
        is_first = token.logprob != token.logprob
        lists["tokens"].append(texts(token.id))
        lists["token_logprobs"].append(None if is_first else finite(token.logprob))
        lists["top_logprobs"].append(None if is_first else texts.top(token, count))
        lists["text_offset"].append(offset)
    return lists


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The numbers of tokens of a whole request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class Said(NamedTuple):
    """What one choice of an answer says: all of it, or its next piece in a stream."""

    index: int
    text: str
    spoken: Sequence[Spoken]
    finish: str | None
    """Why it ends, if this is the end."""


@dataclass(frozen=True)
class Envelope:
    """Puts what is said into the objects of one answer, as `/v1/completions` gives them."""

    model: str
    texts: TokenTexts
    logprobs: int | None = None
    """Alternatives of each token to show; None shows no log-probabilities."""
    token_ids: bool = False
    """Whether a choice has the ids of its tokens."""
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, said: Iterable[Said], usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one piece."""
        return self._around("text_completion", map(self._choice, said), usage=usage)

    def pieces(self, said: Said, **more: Any) -> Iterator[dict[str, Any]]:
        """The events that a piece of a choice is in a stream."""
        yield self._around("text_completion", [self._choice(said)], **more)

    def last(self, usage: dict[str, int]) -> dict[str, Any]:
        """The event that ends a stream with the usage."""
        return self._around("text_completion", [], usage=usage)

    def _choice(self, said: Said) -> dict[str, Any]:
        logprobs = None
        if self.logprobs is not None:
            logprobs = logprobs_of(self.texts, said.spoken, self.logprobs)
        made = {"index": said.index, "text": said.text, "logprobs": logprobs}
        made["finish_reason"] = said.finish
        return made | self._ids(said)

    def _ids(self, said: Said) -> dict[str, Any]:
        return {"token_ids": [token.id for token, _ in said.spoken]} if self.token_ids else {}

    def _around(self, kind: str, choices: Iterable[dict[str, Any]], **more: Any) -> dict[str, Any]:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**about, "choices": list(choices), **more}


def model_entry(name: str, created: int, facts: dict[str, Any]) -> dict[str, Any]:
    """A model in the list of models; `facts` are ours, under `gptjax`."""
    entry = {"id": name, "object": "model", "created": created, "owned_by": "gptjax"}
    return {**entry, "gptjax": facts}

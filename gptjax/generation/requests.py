"""What an engine is asked and what it answers: a request, tokens, news of a sequence."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from gptjax.config import ModelConfig, SampleConfig
from gptjax.generation.decoding import STOP_TOKENS, Sequences
from gptjax.generation.samplers import Sampling
from gptjax.model.gpt import PADDING_LOGIT


class GenerationRequest(NamedTuple):
    """A sequence to generate."""

    prompt: Sequence[int]
    """At least one token id, and at most as many as the engine's context."""
    sample: SampleConfig
    """Its settings; `prompt` and `stop` are texts, and are not read here."""
    key: Array
    """The random key of this sequence."""
    stop_tokens: tuple[int, ...] = ()
    """Up to four ids; the one that is drawn is the last token of the sequence."""
    drawn: int = 0
    """Tokens of the sequence that were drawn before, so that none is drawn like one of them."""


class Token(NamedTuple):
    """A token that was drawn."""

    id: int
    logprob: float
    """Natural logarithm of its probability, before the temperature, the penalty and the filters."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely ids with their log-probabilities, if they were wanted."""


class Event(NamedTuple):
    """News of one sequence."""

    slot: int
    tokens: list[Token]
    finish: str | None
    """`stop` after a stop token, `length` at its limit or the context's, None if it goes on."""


def sequence_row(
    cfg: ModelConfig, request: GenerationRequest, prompt: tuple[int, ...], limit: int
) -> Sequences:
    """The row of a sequence before its first token is drawn, in arrays of the host.

    `prompt` has the ids of the request's, and `limit` the tokens that may be drawn.
    """
    sample, stops = request.sample, request.stop_tokens
    seen_BV = np.zeros((1, cfg.padded_vocab), bool)
    seen_BV[0, list(prompt)] = True
    settings: dict[str, Any] = {
        "temperature_B": _float32(sample.temperature),
        "top_k_B": np.int32(min(sample.top_k or 0, cfg.padded_vocab)),
        "top_p_B": np.float32(sample.top_p),
        "min_p_B": np.float32(sample.min_p),
        "repetition_penalty_B": _float32(sample.repetition_penalty),
    }
    rows: dict[str, Any] = {
        "tokens_B": np.array([prompt[-1]], np.int32),
        "keys_BW": np.asarray(jax.random.key_data(request.key))[None],
        "drawn_B": np.array([request.drawn], np.int32),
        "limits_B": np.array([request.drawn + limit], np.int32),
        "stops_BX": np.array([[*stops, *[-1] * (STOP_TOKENS - len(stops))]], np.int32),
        "seen_BV": seen_BV,
        "sampling": Sampling(**{name: value[None] for name, value in settings.items()}),
    }
    return Sequences(**rows)


def _float32(value: float) -> np.float32:
    """A positive setting; one beyond the range of float32 is as large as it can be."""
    return np.float32(min(value, float(np.finfo(np.float32).max)))


def drawn_tokens(ids: Sequence[int], *found: np.ndarray) -> list[Token]:
    """Tokens of one sequence from the arrays that a program returns, which may be longer.

    The last three of `found` are their log-probabilities, the most likely tokens and those' own.
    """
    logprobs_C, tops_CP, top_logprobs_CP = (x.tolist() for x in found[-3:])
    return [
        Token(token, logprob, _without_padding(tops, top_logprobs))
        for token, logprob, tops, top_logprobs in zip(
            ids, logprobs_C, tops_CP, top_logprobs_CP, strict=False
        )
    ]


def _without_padding(tops: list[int], logprobs: list[float]) -> tuple[tuple[int, float], ...]:
    """The most likely tokens; a small vocabulary has fewer than are looked for."""
    pairs = zip(tops, logprobs, strict=True)
    return tuple((token, logprob) for token, logprob in pairs if logprob > PADDING_LOGIT / 2)

"""The body of `POST /v1/completions`: what a request may say, and every way to say it wrongly.

The fields are those of OpenAI's API, with vLLM's names for the samplers that OpenAI does not have.
A field that is null counts as absent. Fields that are not known are refused, since a setting that
has no effect misleads.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptjax.config import SampleConfig
from gptjax.serving.fields import Fields, shown
from gptjax.serving.refusals import invalid

Prompt = str | tuple[int, ...]
MAX_STOPS, MAX_LOGPROBS, HOTTEST, MAX_SEED = 4, 5, 100.0, 2**32
DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_DIGITS = 4000  # Python reads no longer whole numbers


@dataclass(frozen=True)
class Limits:
    """What a server allows to one request."""

    max_tokens: int
    """Longest continuation, in tokens."""
    max_sequences: int
    """Most prompts times samples."""
    n_vocab: int
    """Token ids are below this."""


@dataclass(frozen=True)
class CompletionRequest:
    """A request that is right in all its fields."""

    prompts: tuple[Prompt, ...]
    """Texts or token ids, at least one."""
    sample: SampleConfig
    """How tokens are drawn. Its prompt is not read, and `max_tokens` goes before its length."""
    max_tokens: int
    """Length of each continuation; 0 only with `echo`."""
    n: int
    """Samples of each prompt."""
    seed: int | None
    """Seed of the samples; None takes a random one."""
    logprobs: int | None
    """Alternatives of each token to show; None shows no log-probabilities."""
    echo: bool
    """Whether the answer begins with the prompt."""
    stream: bool
    """Whether the answer comes as server-sent events."""
    token_ids: bool
    """Whether the answer has the ids of its tokens, under vLLM's name."""
    include_usage: bool
    """Whether a stream ends with the number of its tokens."""


def parse_body(raw: bytes) -> dict[str, Any]:
    """Read the JSON object of a body; raises `Refusal` for anything else."""

    def no_number(word: str) -> float:
        raise ValueError(f"{word} is no JSON")

    try:
        body = json.loads(raw.decode(), parse_constant=no_number, parse_int=_whole_number)
        if b"\\u" in raw:  # half a surrogate pair is no text: nothing can encode it
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise invalid(None, "the body has a text with half of a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid(None, f"the body is not valid JSON in UTF-8: {reason}") from None
    if not isinstance(body, dict):
        raise invalid(None, "the body must be a JSON object")
    return body


def parse_completion(body: Mapping[str, Any], limits: Limits) -> CompletionRequest:
    """Check a body; raises `Refusal` with the first wrong field."""
    fields = Fields(body)
    prompts = parse_prompts(fields.take("prompt"), limits.n_vocab)
    n = fields.integer("n", 1, 1, limits.max_sequences)
    if len(prompts) * n > limits.max_sequences:
        raise invalid(
            "n" if n > 1 else "prompt",
            f"{len(prompts)} prompts with n={n} are {len(prompts) * n} sequences: expected at most "
            f"{limits.max_sequences}, the slots and the queue of this server",
        )
    fields.neutral("best_of", n)
    fields.neutral("suffix", "")
    echo = fields.flag("echo")
    default = min(DEFAULT_MAX_TOKENS, limits.max_tokens)
    max_tokens = fields.integer("max_tokens", default, 0, limits.max_tokens)
    if max_tokens == 0 and not echo:
        raise invalid("max_tokens", "max_tokens must be at least 1, or echo must be true")
    sample = parse_sample(fields, max_tokens)
    stream, include_usage, seed = parse_delivery(fields)
    logprobs = fields.integer("logprobs", -1, 0, MAX_LOGPROBS)
    token_ids = fields.flag("return_token_ids")
    fields.refuse_others()
    return CompletionRequest(
        prompts, sample, max_tokens, n, seed,
        None if logprobs < 0 else logprobs, echo, stream, token_ids, include_usage,
    )  # fmt: skip


def parse_sample(fields: Fields, max_tokens: int) -> SampleConfig:
    """Take how tokens are drawn; raises `Refusal`."""
    for name, value in (("presence_penalty", 0), ("frequency_penalty", 0), ("logit_bias", {})):
        fields.neutral(name, value)
    top_k = fields.integer("top_k", 0, -1, None)
    return SampleConfig(
        max_new_tokens=max(1, max_tokens),
        temperature=fields.number("temperature", 1.0, 0.0, HOTTEST),
        top_k=top_k if top_k > 0 else None,
        top_p=fields.number("top_p", 1.0, 0.0, 1.0, is_open="left"),
        min_p=fields.number("min_p", 0.0, 0.0, 1.0, is_open="right"),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 0.0, 100.0, is_open="left"),
        stop=_stops(fields.take("stop")),
    )


def parse_delivery(fields: Fields) -> tuple[bool, bool, int | None]:
    """Take whether the answer is a stream, whether that ends with the usage, and the seed.

    Takes the fields without effect as well; raises `Refusal`.
    """
    stream = fields.flag("stream")
    include_usage = _stream_options(fields.take("stream_options"), stream)
    seed = fields.integer("seed", -1, 0, MAX_SEED - 1)
    fields.text("model")
    fields.text("user")
    return stream, include_usage, None if seed < 0 else seed


def parse_prompts(value: Any, n_vocab: int, param: str = "prompt") -> tuple[Prompt, ...]:
    """Every prompt of the field `param`; none given starts a document, as the empty text does.

    Raises `Refusal` for anything but the four forms of OpenAI's API, and for unknown ids.
    """
    if value is None:
        return ("",)
    if isinstance(value, str):
        return (value,)
    forms = "a text, a list of texts, token ids, or a list of lists of token ids"
    if not isinstance(value, list) or not value:
        raise invalid(param, f"{param} must be {forms}, not {shown(value)}")
    if all(isinstance(part, str) for part in value):
        return tuple(value)
    lists = value if all(isinstance(part, list) and part for part in value) else [value]
    for ids in lists:
        for token in ids:
            if type(token) is not int:
                raise invalid(param, f"{param} must be {forms}, without {shown(token)}")
            if not 0 <= token < n_vocab:
                raise invalid(param, f"token ids are from 0 to {n_vocab - 1}: {shown(token)}")
    return tuple(map(tuple, lists))


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _stops(value: Any) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    is_list = isinstance(texts, list) and len(texts) <= MAX_STOPS
    if not is_list or not all(isinstance(text, str) and text for text in texts):
        expected = f"a text or up to {MAX_STOPS} texts that are not empty"
        raise invalid("stop", f"stop must be {expected}, not {shown(value)}")
    return tuple(texts)


def _stream_options(value: Any, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise invalid("stream_options", "stream_options are only for stream=true")
    if not isinstance(value, dict):
        raise invalid("stream_options", f"stream_options must be an object, not {shown(value)}")
    options = Fields(value)
    usage = options.flag("include_usage")
    options.refuse_others()
    return usage

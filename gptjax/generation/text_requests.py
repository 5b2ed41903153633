"""From a text and its settings to a request of the engine: token ids, the room they have, a key."""

from collections.abc import Sequence

import jax
from jax import Array

from gptjax.base.errors import UserError
from gptjax.config import Config, ModelConfig, SampleConfig
from gptjax.config.schema import INSTRUCT
from gptjax.data.templates import USER, Message, prompt_tokens
from gptjax.generation.decoding import KEYS
from gptjax.generation.requests import GenerationRequest
from gptjax.tokenizers.plain import Tokenizer


def text_request(
    tokenizer: Tokenizer, config: Config, sample: SampleConfig, key: Array, raw: bool = False
) -> GenerationRequest:
    """The request that answers or continues `sample.prompt`, as `encode_for` reads it.

    A prompt that does not fit the context is cut by `fit_prompt`. Raises `UserError` like
    `encode_prompt`.
    """
    prompt = encode_for(tokenizer, config, sample.prompt, raw)
    prompt = fit_prompt(prompt, config.model.n_ctx, sample.max_new_tokens)
    return GenerationRequest(prompt, sample, key, (tokenizer.eot_id,))


def follows_instructions(config: Config) -> bool:
    """Whether a model was trained to answer prompts in a template, not to continue texts."""
    return config.task == INSTRUCT


def encode_for(tokenizer: Tokenizer, config: Config, text: str, raw: bool = False) -> list[int]:
    """The token ids of a prompt as this model was trained to read it.

    For a model that follows instructions the text is the instruction, and has the words of the
    run's template around it, unless it is `raw`. Otherwise the same as `encode_prompt`.
    """
    if raw or not follows_instructions(config):
        return encode_prompt(tokenizer, config.model, text)
    return prompt_tokens(tokenizer, config.instruct.template, [Message(USER, text)]).tolist()


def before_text(config: Config, raw: bool = False) -> str:
    """What stands between a prompt and its text where both are shown: a response gets a line."""
    return "\n\n" if follows_instructions(config) and not raw else ""


def encode_prompt(tokenizer: Tokenizer, cfg: ModelConfig, text: str) -> list[int]:
    """The token ids of a prompt; of an empty one end-of-text, after which a document begins.

    Raises `UserError` for a text that the tokenizer cannot encode, and for an empty one if the
    model does not have the tokenizer's end-of-text.
    """
    prompt = tokenizer.encode(text).tolist() or [tokenizer.eot_id]
    if max(prompt) >= cfg.padded_vocab:
        raise UserError(
            "this model has no end-of-text, with which an empty prompt begins: give one"
        )
    return prompt


def fit_prompt(prompt: Sequence[int], context: int, new_tokens: int) -> Sequence[int]:
    """The end of a prompt that is longer than the context, as it is read; a shorter one is whole.

    It leaves room for the new tokens, but keeps at least half of the context.

    >>> fit_prompt(range(10), 8, 3), fit_prompt(range(10), 8, 100), fit_prompt(range(8), 8, 100)
    (range(4, 10), range(6, 10), range(0, 8))
    """
    if len(prompt) <= context:
        return prompt
    # the last new token needs no room: it is drawn, and never read
    return prompt[-max(1, context // 2, context + 1 - new_tokens) :]


def sample_key(seed: int, number: int = 0) -> Array:
    """The key of sample `number` of a seed, whatever its prompt and whatever is drawn beside it."""
    return jax.random.fold_in(jax.random.key(seed, impl=KEYS), number)

"""Text from a trained model: one token at a time, each from the whole context before it.

There is no cache: for every token the model runs over a window that holds all tokens so far. The
length of the window is rounded up to a power of two, so that few lengths are compiled.
"""

import codecs
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gptjax.cluster.stop import StopRequest
from gptjax.config import Config, ModelConfig, SampleConfig
from gptjax.model.gpt import GPT
from gptjax.tokenizers.plain import Tokenizer

SHORTEST_WINDOW = 64


def sample_token(logits_V: Array, key: Array, temperature: float, top_k: int | None) -> Array:
    """Sample a token id from the `top_k` most likely; `temperature` 0 takes the most likely one.

    >>> sample_token(jnp.array([0.0, 3.0, 1.0]), jax.random.key(0), 0.0, top_k=None).item()
    1
    """
    if temperature == 0.0:
        return jnp.argmax(logits_V)
    if top_k is not None and top_k < logits_V.shape[-1]:
        candidate_logits, candidates = jax.lax.top_k(logits_V, top_k)
        return candidates[jax.random.categorical(key, candidate_logits / temperature)]
    return jax.random.categorical(key, logits_V / temperature)


@partial(jax.jit, static_argnames=("cfg", "temperature", "top_k"))
def _next_token(
    cfg: ModelConfig,
    params: Any,
    window_T: Array,
    length: Array,
    key: Array,
    temperature: float,
    top_k: int | None,
) -> Array:
    """The token after the first `length` of a padded window; the padding has no influence."""
    # short windows, and perhaps another machine than the one that trained: not cuDNN's attention
    portable = dataclasses.replace(cfg, attention="auto")
    logits_TV = GPT(portable).apply({"params": params}, window_T[None])[0]
    return sample_token(logits_TV[length - 1, : cfg.n_vocab], key, temperature, top_k)


def continue_tokens(
    cfg: ModelConfig, params: Any, prompt: Sequence[int], key: Array, sample: SampleConfig
) -> Iterator[int]:
    """Yield up to `sample.max_new_tokens` ids after `prompt`, which must not be empty.

    Context beyond `n_ctx` tokens is forgotten from the left. Deterministic for a key.
    """
    tokens = list(prompt)
    for i in range(sample.max_new_tokens):
        seen = tokens[-cfg.n_ctx :]
        window = np.zeros(_window_length(len(seen), cfg.n_ctx), dtype=np.int32)
        window[: len(seen)] = seen
        token = _next_token(
            cfg,
            params,
            window,
            len(seen),
            jax.random.fold_in(key, i),
            sample.temperature,
            sample.top_k,
        )
        tokens.append(int(token))
        yield tokens[-1]


def _window_length(length: int, n_ctx: int) -> int:
    return min(n_ctx, max(SHORTEST_WINDOW, 1 << (length - 1).bit_length()))


def stream_text(
    cfg: ModelConfig, params: Any, tokenizer: Tokenizer, key: Array, sample: SampleConfig
) -> Iterator[str]:
    """Yield the text after `sample.prompt` as it comes, up to end-of-text.

    A character appears only when all its bytes are there. An empty prompt starts a document.
    """
    prompt = tokenizer.encode(sample.prompt).tolist() or [tokenizer.eot_id]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in continue_tokens(cfg, params, prompt, key, sample):
        if token == tokenizer.eot_id:
            break
        yield decoder.decode(tokenizer.token_bytes(token))
    yield decoder.decode(b"", final=True)


def sample_after(
    step: int,
    config: Config,
    params: Any,
    tokenizer: Tokenizer,
    stop: StopRequest,
    heartbeat: Callable[[], None],
) -> str | None:
    """A text with its prompt, the same every time this step is reached; None after a stop request.

    `heartbeat` is called with every token. Parameters that are divided among devices stay there, so
    all processes of a run call this.
    """
    key = jax.random.fold_in(jax.random.key(config.train.seed), step)
    if all(x.is_fully_replicated for x in jax.tree.leaves(params)):
        params = jax.tree.map(lambda x: x.addressable_data(0), params)  # one device is enough
    pieces = [config.sample.prompt]
    for piece in stream_text(config.model, params, tokenizer, key, config.sample):
        pieces.append(piece)
        heartbeat()
        if stop:
            return None
    return "".join(pieces)

"""`POST /v1/attention`: where a head looks, in the last forward pass over a prompt and its text.

It is for the page, and off unless the server is started with `--attention-maps`: a map is computed
beside the running batch, which it slows down. One map is computed at a time.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from gptjax.base.tree import Tree
from gptjax.config import ModelConfig
from gptjax.generation.engine import doubled_until
from gptjax.model.attention_maps import attention_map
from gptjax.model.decoder import decoder_config
from gptjax.model.products import matmul_precision
from gptjax.serving.completion import encoded
from gptjax.serving.fields import Fields
from gptjax.serving.protocol import Prompt, parse_prompts
from gptjax.serving.refusals import Refusal, invalid
from gptjax.serving.responses import TokenTexts
from gptjax.tokenizers.plain import Tokenizer

SHOWN = 128  # tokens of a map at most
MAX_WAITING = 8  # maps that may be asked for while one is computed
MOST_TOKENS = 2**20  # of a completion, which is cut: a body holds fewer
DIGITS = 4  # of a weight in the answer


@dataclass(frozen=True)
class AttentionRequest:
    """Which head to look at, and over which text."""

    prompt: Prompt
    completion: Prompt
    """What follows the prompt, in tokens of its own since it was generated."""
    layer: int
    head: int


def parse_attention(body: Mapping[str, Any], cfg: ModelConfig) -> AttentionRequest:
    """Check a body; raises `Refusal` with the first wrong field."""
    fields = Fields(body)
    request = AttentionRequest(
        _one(fields, "prompt", cfg),
        _one(fields, "completion", cfg),
        fields.integer("layer", 0, 0, cfg.n_layer - 1),
        fields.integer("head", 0, 0, cfg.n_head - 1),
    )
    fields.refuse_others()
    return request


def _one(fields: Fields, name: str, cfg: ModelConfig) -> Prompt:
    found = parse_prompts(fields.take(name), cfg.n_vocab or 0, name)
    if len(found) != 1:
        raise invalid(name, f"{name} must be one text or token ids, not {len(found)} of them")
    return found[0]


class AttentionMaps:
    """Computes the maps of one model; `params` is its parameter tree, read in `dtype`."""

    def __init__(
        self, cfg: ModelConfig, params: Tree, tokenizer: Tokenizer, context: int, dtype: str
    ):
        self._cfg, self._params, self._context = decoder_config(cfg, dtype), params, context
        self._tokenizer, self._texts = tokenizer, TokenTexts(tokenizer)
        self._precision = matmul_precision(self._cfg, jax.devices()[0])
        self._compute = jax.jit(partial(attention_map, self._cfg))
        self._turn, self._waiting = asyncio.Semaphore(1), 0

    async def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a body; raises `Refusal` for a wrong one, or if too many wait."""
        request = parse_attention(body, self._cfg)
        if self._waiting > MAX_WAITING:
            raise Refusal(429, "too many attention maps are asked for at once", code="queue_full")
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(self.find, request)
        finally:
            self._waiting -= 1

    def find(self, request: AttentionRequest) -> dict[str, Any]:
        """The texts of the last 128 tokens, the weights of their rows, and the place of the first.

        Tokens that do not fit the context are left out at the end: no pass has read them. A row
        sums to less than 1 if it also looks at tokens before the first. Raises `Refusal` for a
        prompt that does not fit or that the tokenizer cannot encode.
        """
        ids = encoded(self._tokenizer, request.prompt, self._context) or (self._tokenizer.eot_id,)
        ids += encoded(self._tokenizer, request.completion, MOST_TOKENS)
        ids = ids[: self._context]
        # what is beyond the text changes nothing before it
        length = doubled_until(len(ids), SHOWN, self._cfg.n_ctx)
        tokens_BT = np.zeros((1, length), np.int32)
        tokens_BT[0, : len(ids)] = ids
        with jax.default_matmul_precision(self._precision):
            weights_BTS = self._compute(self._params, tokens_BT, request.layer, request.head)
        start = max(0, len(ids) - SHOWN)
        shown_TS = np.asarray(weights_BTS, np.float64)[0, start : len(ids), start : len(ids)]
        return {
            "tokens": [self._texts(token) for token in ids[start:]],
            "weights": shown_TS.round(DIGITS).tolist(),
            "start": start,
        }

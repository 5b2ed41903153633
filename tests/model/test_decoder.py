"""The decoder beyond what tests of the engine see: its other types, and the end of the context."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import ModelConfig
from gptjax.model.cache import empty_cache
from gptjax.model.decoder import decoder_config, decoder_params, extend, head_logits
from gptjax.model.gpt import GPT, parameter_shapes

GPT2 = ModelConfig(2, 4, 32, n_ctx=150, n_vocab=301, dtype="float32", bias=True, qkv_bias=True)


def random_params(cfg: ModelConfig):
    """Parameters so large that tokens differ and every position counts."""
    rng = np.random.default_rng(0)

    def draw(x):
        return jnp.asarray(rng.normal(0, 0.3 if len(x.shape) > 1 else 0.5, x.shape), x.dtype)

    return jax.tree.map(draw, parameter_shapes(cfg))


@pytest.mark.slow
def test_bfloat16_stays_within_its_rounding():
    cfg = decoder_config(GPT2, "bfloat16")
    params = random_params(GPT2)
    ids = np.random.default_rng(1).integers(0, GPT2.n_vocab or 0, (1, 100))
    x_BTD, _ = extend(cfg, decoder_params(params, cfg), ids, empty_cache(cfg, 1, ids.shape[1]))
    found = head_logits(cfg, decoder_params(params, cfg), x_BTD)
    whole = GPT(dataclasses.replace(GPT2, dtype="bfloat16")).apply({"params": params}, ids)
    exact = GPT(GPT2).apply({"params": params}, ids)
    assert isinstance(whole, jax.Array)
    usual = float(jnp.abs(whole - exact).mean())
    assert 0 < float(jnp.abs(found - exact).mean()) < 2 * usual


@pytest.mark.slow
def test_a_token_beyond_the_context_leaves_numbers():
    cfg = decoder_config(GPT2, "float32")
    cache = empty_cache(cfg, 2, cfg.n_ctx)
    cache = cache._replace(lengths_B=jnp.array([cfg.n_ctx, 3]))
    x_BTD, cache = extend(
        cfg, decoder_params(random_params(GPT2), cfg), jnp.zeros((2, 1), int), cache
    )
    assert bool(jnp.isfinite(x_BTD).all())
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(cache.layers))

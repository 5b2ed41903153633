"""Tokens through the cache are those of the whole model, at every position of the whole context."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXHAUSTIVE

from gptjax.cluster.mesh import make_mesh, shardings
from gptjax.config import ModelConfig, SampleConfig
from gptjax.generation.engine import Engine
from gptjax.generation.requests import GenerationRequest
from gptjax.model.cache import empty_cache
from gptjax.model.decoder import decoder_config, decoder_params, extend, head_logits
from gptjax.model.gpt import GPT, parameter_shapes
from gptjax.model.places import ModelSharding

GPT2 = ModelConfig(2, 4, 32, n_ctx=150, n_vocab=301, dtype="float32", bias=True, qkv_bias=True)
GPT1 = dataclasses.replace(GPT2, norm="post", final_norm=False)
KINDS = {
    "gpt2": GPT2,
    "gpt1": GPT1,
    "untied": dataclasses.replace(GPT2, tied_head=False),
    "no biases": dataclasses.replace(GPT2, bias=False, qkv_bias=False, activation="gelu_erf"),
}
GREEDY = SampleConfig(max_new_tokens=1000, temperature=0.0)


def random_params(cfg: ModelConfig):
    """Parameters so large that tokens differ and every position counts."""
    rng = np.random.default_rng(0)

    def draw(x):
        return jnp.asarray(rng.normal(0, 0.3 if len(x.shape) > 1 else 0.5, x.shape), x.dtype)

    return jax.tree.map(draw, parameter_shapes(cfg))


def prompts(cfg: ModelConfig) -> list[list[int]]:
    """Prompts of unequal lengths, from one token to the whole context."""
    rng = np.random.default_rng(1)
    lengths = (1, 2, 16, 17, 100, cfg.n_ctx)
    return [rng.integers(0, cfg.n_vocab, length).tolist() for length in lengths]


def check_against_whole_model(cfg, params, engine, atol=1e-5):
    """Fill the context of every prompt; compare with one forward pass over each finished text."""
    found = {}
    for prompt in prompts(cfg):
        event = engine.admit(GenerationRequest(prompt, GREEDY, jax.random.key(0)), wants_top=True)
        found[event.slot] = prompt, list(event.tokens), event.finish
    while engine.running:
        for event in engine.decode(32):
            prompt, tokens, _ = found[event.slot]
            found[event.slot] = prompt, tokens + event.tokens, event.finish
    forward = jax.jit(GPT(dataclasses.replace(cfg, attention="xla")).apply)
    for prompt, tokens, finish in found.values():
        assert finish == "length"
        assert len(prompt) + len(tokens) == cfg.n_ctx + 1  # the last one is never read
        text = np.array([prompt + [token.id for token in tokens]])
        logits_TV = np.asarray(forward({"params": params}, text[:, :-1])[0], np.float64)
        logits_TV = logits_TV[len(prompt) - 1 :, : cfg.n_vocab]
        assert [token.id for token in tokens] == logits_TV.argmax(-1).tolist()
        logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
        expected = logprobs_TV.max(-1)
        np.testing.assert_allclose([token.logprob for token in tokens], expected, atol=atol)
        for t, token in enumerate(tokens):
            ids, logprobs = zip(*token.top, strict=True)
            assert ids[0] == token.id
            np.testing.assert_allclose(logprobs, np.sort(logprobs_TV[t])[:-6:-1], atol=atol)


@pytest.mark.parametrize(
    ("kind", "split"),
    [
        pytest.param("gpt2", ModelSharding(tensor=2), marks=pytest.mark.slow),
        pytest.param("gpt1", ModelSharding(tensor=2), marks=pytest.mark.slow),
        pytest.param("untied", ModelSharding(fsdp=2, tensor=2), marks=pytest.mark.slow),
        pytest.param("gpt2", ModelSharding(fsdp=2), marks=pytest.mark.slow),
        pytest.param("no biases", ModelSharding(tensor=4), marks=pytest.mark.slow),
    ],
)
def test_a_divided_model_draws_the_same(kind, split):
    cfg = KINDS[kind]
    params = random_params(cfg)
    mesh = make_mesh(2 * split.fsdp * split.tensor, split)  # two copies, along `data`
    divided = jax.device_put(params, shardings(params, params, mesh))
    check_against_whole_model(cfg, params, Engine(cfg, divided, capacity=6, mesh=mesh))


@pytest.mark.parametrize(
    "cfg",
    [
        pytest.param(ModelConfig(n_vocab=50257, dtype="float32"), marks=EXHAUSTIVE),
        pytest.param(
            ModelConfig(n_ctx=512, n_vocab=40478, norm="post", final_norm=False, dtype="float32"),
            marks=EXHAUSTIVE,
        ),
    ],
    ids=["124M", "117M"],
)
def test_the_published_sizes_draw_the_same_over_their_whole_context(cfg):
    params = jax.tree.map(lambda x: x * (0.2 if x.ndim > 1 else 1.0), random_params(cfg))
    check_against_whole_model(cfg, params, Engine(cfg, params, capacity=6), atol=1e-5 * 5)


def test_bfloat16_stays_within_its_rounding():
    cfg = decoder_config(GPT2, "bfloat16")
    params = random_params(GPT2)
    ids = np.array([prompts(GPT2)[4]])
    x_BTD, _ = extend(cfg, decoder_params(params, cfg), ids, empty_cache(cfg, 1, ids.shape[1]))
    found = head_logits(cfg, decoder_params(params, cfg), x_BTD)
    whole = GPT(dataclasses.replace(GPT2, dtype="bfloat16")).apply({"params": params}, ids)
    exact = GPT(GPT2).apply({"params": params}, ids)
    assert isinstance(whole, jax.Array)
    usual = float(jnp.abs(whole - exact).mean())
    assert 0 < float(jnp.abs(found - exact).mean()) < 2 * usual


def test_a_token_beyond_the_context_leaves_numbers():
    cfg = decoder_config(GPT2, "float32")
    cache = empty_cache(cfg, 2, cfg.n_ctx)
    cache = cache._replace(lengths_B=jnp.array([cfg.n_ctx, 3]))
    x_BTD, cache = extend(
        cfg, decoder_params(random_params(GPT2), cfg), jnp.zeros((2, 1), int), cache
    )
    assert bool(jnp.isfinite(x_BTD).all())
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(cache.layers))

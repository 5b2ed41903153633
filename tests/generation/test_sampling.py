"""Sampling draws what it says, from exactly the context it says, and streams whole characters."""

import dataclasses
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import ModelConfig, SampleConfig
from gptjax.generation import sampling
from gptjax.generation.sampling import continue_tokens, sample_token, stream_text
from gptjax.model.gpt import GPT, parameter_shapes
from gptjax.tokenizers.plain import ByteTokenizer

CFG = ModelConfig(2, 2, 16, n_ctx=8, n_vocab=50, dtype="float32", bias=False, qkv_bias=False)
LOGITS_V = jnp.asarray(np.random.default_rng(0).permutation(8) / 2.0, jnp.float32)
TEXT = "a é→𝄞!"  # one to four bytes a character, and no byte twice


def draws(temperature, top_k, number=4000, logits_V=LOGITS_V):
    keys = jax.random.split(jax.random.key(1), number)
    return np.asarray(jax.vmap(lambda key: sample_token(logits_V, key, temperature, top_k))(keys))


@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_temperature_0_takes_the_likeliest(top_k):
    assert (draws(0.0, top_k) == np.argmax(LOGITS_V)).all()


def test_a_single_candidate_is_the_likeliest_at_any_temperature():
    assert (draws(100.0, 1) == np.argmax(LOGITS_V)).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [2, 5, 8, 100, None])
def test_frequencies_are_the_softmax_over_the_candidates(temperature, top_k):
    logits_V = np.asarray(LOGITS_V, np.float64)
    weights_V = np.exp(logits_V / temperature)
    weights_V[np.argsort(logits_V)[: -(top_k or 8)]] = 0
    p_V = weights_V / weights_V.sum()
    drawn = draws(temperature, top_k)
    frequency_V = np.bincount(drawn, minlength=8) / drawn.size
    assert frequency_V.shape == (8,)
    assert (frequency_V[p_V == 0] == 0).all()
    assert (abs(frequency_V - p_V) <= 5 * np.sqrt(p_V * (1 - p_V) / drawn.size)).all()


@pytest.fixture(scope="module")
def params():
    """Random parameters, so large that every position sways the likeliest token."""
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(CFG)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes)


def continued(params, prompt, seed=0, cfg=CFG, **sample):
    sample = SampleConfig(**{"max_new_tokens": 16, "temperature": 1.0, "top_k": None} | sample)
    return list(continue_tokens(cfg, params, prompt, jax.random.key(seed), sample))


forward = jax.jit(GPT(CFG).apply)


def naive_greedy(params, prompt, number):
    """The definition: the whole window and nothing else, no padding."""
    tokens = list(prompt)
    for _ in range(number):
        logits_TV = forward({"params": params}, np.array([tokens[-CFG.n_ctx :]]))[0]
        tokens.append(int(np.argmax(logits_TV[-1])))
    return tokens[len(prompt) :]


def test_continuing_equals_the_naive_loop_before_and_after_the_context_is_full(params, monkeypatch):
    monkeypatch.setattr(sampling, "SHORTEST_WINDOW", 4)  # windows of 4 and 8
    prompt = [3, 14, 15]
    tokens = continued(params, prompt, temperature=0.0, max_new_tokens=24)
    assert tokens == naive_greedy(params, prompt, 24)
    assert len(set(tokens)) > 5


def test_a_prompt_longer_than_the_context_is_cropped_from_the_left(params):
    prompt = list(range(20))
    tokens = continued(params, prompt, temperature=0.0)
    assert tokens == continued(params, prompt[-CFG.n_ctx :], temperature=0.0)
    assert tokens == naive_greedy(params, prompt, 16)
    assert tokens != continued(params, prompt[-CFG.n_ctx + 1 :], temperature=0.0)
    assert prompt == list(range(20))


@pytest.mark.parametrize(
    ("length", "window"), [(1, 64), (64, 64), (65, 128), (128, 128), (129, 200), (200, 200)]
)
def test_windows_are_powers_of_two_up_to_the_context(length, window, monkeypatch):
    cfg = ModelConfig(n_ctx=200, n_vocab=50)
    seen = []
    monkeypatch.setattr(sampling, "_next_token", lambda *args: seen.append(args[2:4]) or 7)
    prompt = np.arange(1, length + 1)
    assert continued(None, prompt, cfg=cfg, max_new_tokens=1) == [7]
    [(window_T, real)] = seen
    assert real == length
    np.testing.assert_array_equal(window_T, [*prompt, *[0] * (window - length)])


def test_the_same_key_gives_the_same_tokens_and_another_others(params):
    tokens = continued(params, [1, 2])
    assert tokens == continued(params, [1, 2])
    assert tokens != continued(params, [1, 2], seed=1)
    assert len(tokens) == 16
    assert tokens[:5] == continued(params, [1, 2], max_new_tokens=5)


def test_every_token_has_its_own_randomness():
    still = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), parameter_shapes(CFG))
    assert len(set(continued(still, [1], max_new_tokens=40))) > 15


def test_a_single_candidate_continues_as_the_likeliest(params):
    assert continued(params, [1, 2], top_k=1) == continued(params, [1, 2], temperature=0.0)


def test_ids_that_only_pad_the_vocabulary_are_never_drawn(params):
    tokens = continued(params, [1, 2], temperature=1e12, max_new_tokens=100)
    assert max(tokens) < CFG.n_vocab


@pytest.fixture(scope="module")
def speak():
    """Stream from a network that can only say TEXT and then end-of-text."""
    cfg = ModelConfig(
        1, 1, 257, n_ctx=8, n_vocab=257, final_norm=False, tied_head=False, dtype="float32"
    )
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parameter_shapes(cfg))
    params["wte"]["embedding"][:257] = np.eye(257)
    for before, after in pairwise([256, *TEXT.encode(), 256]):
        params["lm_head"][after, before] = 1.0
    return partial(stream_pieces, cfg, jax.tree.map(jnp.asarray, params))


def stream_pieces(cfg, params, prompt, max_new_tokens=100):
    sample = SampleConfig(prompt, max_new_tokens, temperature=0.0)
    return list(stream_text(cfg, params, ByteTokenizer(), jax.random.key(0), sample))


def test_an_empty_prompt_starts_a_document_which_ends_at_end_of_text(speak):
    assert "".join(speak("")) == TEXT


def test_the_prompt_is_continued_and_not_repeated(speak):
    assert "".join(speak("a é")) == "→𝄞!"


def test_characters_come_whole_and_as_soon_as_their_last_byte(speak):
    expected = [piece for c in TEXT for piece in [""] * (len(c.encode()) - 1) + [c]]
    assert speak("") == [*expected, ""]


def test_a_character_cut_short_becomes_one_replacement_character(speak):
    assert "".join(speak("", max_new_tokens=6)) == "a é�"


def test_nothing_follows_end_of_text(speak, monkeypatch):
    said = iter([*b"ab", 256, *b"cd"])
    monkeypatch.setattr(sampling, "continue_tokens", lambda *args: said)
    assert "".join(speak("")) == "ab"
    assert list(said) == [*b"cd"]


def test_bytes_that_are_no_text_become_replacement_characters(speak, monkeypatch):
    monkeypatch.setattr(sampling, "continue_tokens", lambda *args: iter([0xFF, *b"ok", 0xC3, 0x28]))
    assert "".join(speak("")) == "�ok�("


def test_a_model_that_trained_with_cudnns_attention_continues_anywhere(params):
    cfg = dataclasses.replace(CFG, attention="cudnn")
    assert continued(params, [1, 2, 3], cfg=cfg) == continued(params, [1, 2, 3])

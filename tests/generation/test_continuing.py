"""Texts of many sequences through few slots are those of each alone, whole characters, in order."""

import dataclasses
import time
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.base.errors import UserError
from gptjax.config import Config, ModelConfig, SampleConfig
from gptjax.generation.continuing import Continued, continue_texts, in_order, whole_texts
from gptjax.generation.engine import Engine
from gptjax.generation.requests import GenerationRequest
from gptjax.generation.text_requests import encode_prompt, fit_prompt, sample_key, text_request
from gptjax.model.gpt import GPT, parameter_shapes
from gptjax.tokenizers.plain import ByteTokenizer

CFG = ModelConfig(2, 2, 16, n_ctx=12, n_vocab=257, dtype="float32", bias=False, qkv_bias=False)
TOKENIZER = ByteTokenizer()
TEXT = "a é→𝄞!"  # one to four bytes a character, and no byte twice


@pytest.fixture(scope="module")
def params():
    """Random parameters, so large that every position sways the likeliest token."""
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(CFG)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes)


@pytest.fixture(scope="module")
def engine(params):
    return Engine(CFG, params, capacity=3)


def request(prompt, seed=0, number=0, **sample) -> GenerationRequest:
    sample = SampleConfig(**{"max_new_tokens": 9, "temperature": 1.0, "top_k": None} | sample)
    return GenerationRequest(prompt, sample, sample_key(seed, number), (TOKENIZER.eot_id,))


def whole(engine, requests, slide=False) -> list[Continued]:
    return list(whole_texts(continue_texts(engine, TOKENIZER, requests, slide)))


def ids(sample: Continued) -> list[int]:
    return [token.id for token in sample.tokens]


def tokens_of(engine, prompt, slide=False, **sample) -> list[int]:
    return ids(whole(engine, [request(prompt, **sample)], slide)[0])


@pytest.mark.slow
def test_many_through_few_slots_are_what_each_is_alone(engine):
    """With 8 sequences and 3 slots each joins others in the middle; none is changed by it."""
    requests = [
        request([7 * n + 1, *range(n)], seed=n, max_new_tokens=1 + 3 * n % 10) for n in range(8)
    ]
    together = whole(engine, requests)
    assert [sample.number for sample in together] == list(range(8))
    assert engine.free == [0, 1, 2]
    for wanted, sample in zip(requests, together, strict=True):
        [alone] = whole(engine, [wanted])
        assert alone == sample._replace(number=0)


def test_the_same_number_has_the_same_text_beside_any_others(engine):
    wanted = request([5], number=2)
    first = whole(engine, [request([1]), wanted, request([2]), request([3])])[1]
    second = whole(engine, [wanted, request([9] * 4)])[0]
    assert first.tokens == second.tokens
    assert ids(whole(engine, [request([5], number=1)])[0]) != ids(first)


def naive_greedy(params, prompt, number, slide):
    """The definition: the whole context and nothing else; if it is full, its newest half."""
    apply = jax.jit(GPT(CFG).apply)
    context, tokens = list(prompt), []
    while len(tokens) < number:
        if len(context) > CFG.n_ctx:
            if not slide:
                break
            context = context[-(CFG.n_ctx // 2) :]
        padded = np.zeros((1, CFG.n_ctx), np.int32)
        padded[0, : len(context)] = context
        logits_V = apply({"params": params}, padded)[0, len(context) - 1]
        context.append(int(np.argmax(logits_V)))
        tokens.append(context[-1])
    return tokens


@pytest.mark.parametrize("slide", [False, True])
def test_a_full_context_ends_the_text_or_slides_by_half(slide, engine, params):
    wanted = naive_greedy(params, [3, 14, 15], 40, slide)
    [sample] = whole(engine, [request([3, 14, 15], max_new_tokens=40, temperature=0.0)], slide)
    assert ids(sample) == wanted
    assert len(wanted) == (40 if slide else CFG.n_ctx - 3 + 1)
    assert sample.finish == "length"
    assert len(set(wanted)) > 5


def test_a_context_that_slides_goes_on_with_new_random_numbers(params):
    """Without learnt preferences only the random numbers decide: those of one seed never repeat."""
    still = jax.tree.map(jnp.zeros_like, params)
    engine = Engine(CFG, still, capacity=3)
    drawn = tokens_of(engine, [1], slide=True, max_new_tokens=60, seed=4)
    assert len(drawn) == 60
    assert drawn == tokens_of(engine, [1], slide=True, max_new_tokens=60, seed=4)
    parts = [tuple(drawn[i : i + 5]) for i in range(0, 55)]
    assert len(set(parts)) == len(parts)


def test_a_prompt_that_is_too_long_keeps_its_end_and_room_for_the_text(engine):
    long = list(range(1, 30))
    for new_tokens, kept in ((1, 12), (4, 9), (7, 6), (50, 6)):
        assert fit_prompt(long, CFG.n_ctx, new_tokens) == long[-kept:]
    assert fit_prompt(long[:12], CFG.n_ctx, 50) == long[:12]
    text = bytes(long).decode()
    sample = SampleConfig(text, 4, 0.0)
    made = text_request(TOKENIZER, Config(CFG), sample, sample_key(0))
    assert list(made.prompt) == long[-9:]
    assert ids(whole(engine, [made])[0]) == tokens_of(
        engine, long[-9:], max_new_tokens=4, temperature=0.0
    )


def test_an_end_of_text_that_the_model_does_not_have_begins_nothing():
    small = dataclasses.replace(CFG, n_vocab=256)
    assert encode_prompt(TOKENIZER, CFG, "") == [256]
    assert encode_prompt(TOKENIZER, small, "a") == [97]
    with pytest.raises(UserError, match="end-of-text"):
        encode_prompt(TOKENIZER, small, "")


def test_calls_grow_from_one_token_to_32(engine, monkeypatch):
    steps, decode = [], engine.decode
    monkeypatch.setattr(engine, "decode", lambda n: steps.append(n) or decode(n))
    whole(engine, [request([1], max_new_tokens=60)], slide=True)
    assert steps[:7] == [1, 2, 4, 8, 16, 32, 32]


def test_calls_for_readers_are_short(engine, monkeypatch):
    """Here every token takes 30 ms, but the first call, which compiles, 5 s."""
    engine, steps, now = engine.with_slots(3), [], [0.0]

    def slowly(n: int, decode=engine.decode):
        now[0] += 0.03 * n if steps else 5.0
        steps.append(n)
        return decode(n)

    monkeypatch.setattr(engine, "decode", slowly)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    texts = continue_texts(
        engine, TOKENIZER, [request([1], max_new_tokens=60)], slide=True, seconds=0.1
    )
    assert len(ids(next(whole_texts(texts)))) == 60
    assert steps[:5] == [1, 1, 2, 2, 2]
    assert set(steps) == {1, 2}


def test_an_iterator_that_is_closed_early_frees_its_slots(engine):
    texts = continue_texts(engine, TOKENIZER, [request([n]) for n in range(5)])
    next(texts)
    next(texts)
    assert engine.free == [2]
    texts.close()
    assert engine.free == [0, 1, 2]


def test_pieces_in_order_are_those_of_each_sequence():
    def piece(number, text, finish=None):
        return Continued(number, text, [], finish)

    mixed = [
        piece(1, "a"), piece(0, "b"), piece(2, "c", "stop"), piece(0, "d", "stop"),
        piece(1, "e"), piece(1, "f", "length"),
    ]  # fmt: skip
    at_once = []

    def given():
        for one in mixed:
            at_once.append("given")
            yield one

    for one in in_order(given()):
        at_once.append(one.text)
    assert at_once == [
        *("given", "given", "b", "given", "given", "d", "a", "given", "e", "given", "f", "c"),
    ]
    assert [(w.number, w.text, w.finish) for w in whole_texts(iter(mixed))] == [
        (0, "bd", "stop"), (1, "aef", "length"), (2, "c", "stop"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def speak():
    """Stream from a network that can only say TEXT and then end-of-text."""
    cfg = ModelConfig(
        1, 1, 257, n_ctx=16, n_vocab=257, final_norm=False, tied_head=False, dtype="float32"
    )
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parameter_shapes(cfg))
    params["wte"]["embedding"][:257] = np.eye(257)
    for before, after in pairwise([256, *TEXT.encode(), 256]):
        params["lm_head"][after, before] = 1.0
    return partial(spoken, Engine(cfg, jax.tree.map(jnp.asarray, params)))


def spoken(engine, prompt, max_new_tokens=100, stop=()):
    sample = SampleConfig(prompt, max_new_tokens, temperature=0.0, stop=stop)
    made = text_request(TOKENIZER, Config(engine.cfg), sample, sample_key(0))
    [found] = whole(engine, [made])
    return found.text, found.finish


def test_an_empty_prompt_starts_a_document_which_ends_at_end_of_text(speak):
    assert speak("") == (TEXT, "stop")


def test_the_prompt_is_continued_and_not_repeated(speak):
    assert speak("a é") == ("→𝄞!", "stop")


def test_a_character_cut_short_becomes_one_replacement_character(speak):
    assert speak("", max_new_tokens=6) == ("a é�", "length")


def test_a_text_ends_before_its_stop_text_and_its_slot_is_free(speak):
    assert speak("", stop=("zz", "→𝄞")) == ("a é", "stop")
    engine = speak.args[0]
    assert engine.free == [0]
    sample = SampleConfig("", 100, temperature=0.0, stop=("→",))
    pieces = continue_texts(
        engine, TOKENIZER, [text_request(TOKENIZER, Config(engine.cfg), sample, sample_key(0))]
    )
    [found] = whole_texts(pieces)
    assert bytes(ids(found)).decode() == "a é→"  # its tokens end with the one that ended the text

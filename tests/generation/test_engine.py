"""Decoding with slots is the full forward at every position, and a sequence is alone in company."""

import dataclasses
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest
from conftest import EXHAUSTIVE

from gptjax.cluster.mesh import make_mesh, shardings
from gptjax.config import ModelConfig, SampleConfig
from gptjax.generation.engine import Engine
from gptjax.generation.requests import Event, GenerationRequest, Token
from gptjax.model.gpt import GPT, parameter_shapes
from gptjax.model.places import ModelSharding

GPT2 = ModelConfig(n_layer=2, n_head=4, n_embd=32, n_ctx=140, n_vocab=200, dtype="float32")
GPT1 = dataclasses.replace(GPT2, n_ctx=40, norm="post", final_norm=False, activation="gelu_tanh")
BARE = dataclasses.replace(
    GPT2, n_ctx=40, tied_head=False, bias=False, qkv_bias=False, activation="gelu_erf"
)
LORA = dataclasses.replace(GPT2, n_ctx=40, lora_rank=2, lora_targets=("c_attn", "c_fc", "c_proj"))
GREEDY = SampleConfig(max_new_tokens=1000, temperature=0.0)
SEEDS = {GPT2: 1, GPT1: 3, BARE: 1}
NAMES = ["GPT-2", "GPT-1", "untied, no bias", "adapters"]
SLOTS = 4


@cache
def params_of(cfg: ModelConfig) -> Any:
    """Parameters whose most likely tokens are far from the second most likely."""
    draw = np.random.default_rng(SEEDS.get(cfg, 1)).standard_normal
    return jax.tree.map(lambda x: np.float32(0.3 * draw(x.shape)), parameter_shapes(cfg))


@partial(jax.jit, static_argnums=0)
def full_forward(cfg: ModelConfig, params: Any, tokens_BT: Any) -> jax.Array:
    """Log-probabilities [T, V] of the whole sequence at once, without a cache."""
    logits_TV = GPT(cfg).apply({"params": params}, tokens_BT)[0, :, : cfg.n_vocab]
    return jax.nn.log_softmax(logits_TV)


def prompts_of(cfg: ModelConfig, *lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, cfg.n_vocab or 0, n).tolist() for n in lengths]


def request(prompt: Sequence[int], sample: SampleConfig = GREEDY, seed: int = 0, **more: Any):
    return GenerationRequest(prompt, sample, jax.random.key(seed, impl="threefry2x32"), **more)


def generate(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    steps: int = 32,
    wants_top: bool = False,
) -> list[list[Token]]:
    """All of them together, to their ends."""
    slots, texts = [], {}
    for asked in requests:
        event = engine.admit(asked, wants_top)
        slots.append(event.slot)
        texts[event.slot] = event.tokens
    while engine.running:
        for event in engine.decode(steps):
            texts[event.slot] += event.tokens
    for slot in slots:
        engine.release(slot)
    return [texts[slot] for slot in slots]


def assert_full_forward(
    cfg: ModelConfig, prompt: list[int], text: list[Token], tolerance: float = 1e-5
) -> None:
    """The text fills the context, and each token and its alternatives are those of the model."""
    ids = prompt + [token.id for token in text]
    assert len(ids) == cfg.n_ctx + 1  # the last is drawn from a full context
    logprobs_TV = np.asarray(full_forward(cfg, params_of(cfg), np.array([ids[:-1]])))
    drawn_TV = logprobs_TV[len(prompt) - 1 :]
    second, first = np.sort(drawn_TV, axis=1)[:, -2:].T
    assert (first - second).min() > 10 * tolerance, "choose other parameters"
    assert drawn_TV.argmax(1).tolist() == [token.id for token in text]
    found = [token.logprob for token in text]
    np.testing.assert_allclose(found, first, rtol=0, atol=tolerance)
    for token, logprobs_V in zip(text, drawn_TV, strict=True):
        ids, top = zip(*token.top, strict=True)
        assert ids[0] == token.id
        np.testing.assert_allclose(top, np.sort(logprobs_V)[:-6:-1], rtol=0, atol=tolerance)
        np.testing.assert_allclose(top, logprobs_V[list(ids)], rtol=0, atol=tolerance)


def check_full_context(cfg: ModelConfig, engine: Engine, *lengths: int) -> None:
    """Fill the context after prompts of these lengths, together."""
    prompts = prompts_of(cfg, *lengths)
    texts = generate(engine, list(map(request, prompts)), wants_top=True)
    for prompt, text in zip(prompts, texts, strict=True):
        assert_full_forward(cfg, prompt, text)


@pytest.mark.parametrize(
    "cfg",
    [GPT2, *(pytest.param(cfg, marks=pytest.mark.slow) for cfg in (GPT1, BARE, LORA))],
    ids=NAMES,
)
def test_greedy_tokens_are_those_of_the_full_forward_at_every_position(cfg):
    check_full_context(cfg, Engine(cfg, params_of(cfg), SLOTS), 1, 16, 17, cfg.n_ctx)


@pytest.mark.parametrize(
    ("cfg", "lengths"),
    [
        pytest.param(ModelConfig(n_vocab=50257, dtype="float32"), (1, 100, 1000), marks=EXHAUSTIVE),
        pytest.param(
            dataclasses.replace(GPT1, n_layer=12, n_head=12, n_embd=768, n_ctx=512, n_vocab=40478),
            (1, 100, 500),
            marks=EXHAUSTIVE,
        ),
    ],
    ids=["124M", "117M"],
)
def test_the_published_sizes_draw_the_same_over_their_whole_context(cfg, lengths):
    check_full_context(cfg, Engine(cfg, params_of(cfg), SLOTS), *lengths)


MESHES = [(1, 1, 2), (1, 2, 1), (1, 1, 4), (2, 2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [GPT2, GPT1, BARE, LORA], ids=NAMES)
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_divided_model_decodes_as_a_whole_one(cfg, sizes):
    cfg = dataclasses.replace(cfg, n_ctx=40)
    mesh = make_mesh(int(np.prod(sizes)), ModelSharding(*sizes[1:]))
    params = params_of(cfg)
    params = jax.device_put(params, shardings(params, params, mesh))
    check_full_context(cfg, Engine(cfg, params, SLOTS, mesh=mesh), 1, 2, 17, cfg.n_ctx)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(GPT2, params_of(GPT2), SLOTS)


def random_requests(count: int, seed: int) -> list[GenerationRequest]:
    chance = np.random.default_rng(seed)
    samples = [
        SampleConfig(
            max_new_tokens=int(chance.integers(1, 130)),
            temperature=float(chance.choice([0.0, 0.7, 1.5])),
            top_k=[None, 5, 40][chance.integers(3)],
            top_p=float(chance.choice([1.0, 0.8])),
            min_p=float(chance.choice([0.0, 0.05])),
            repetition_penalty=float(chance.choice([1.0, 1.3])),
        )
        for _ in range(count)
    ]
    prompts = prompts_of(GPT2, *chance.integers(1, 140, count))
    return [request(p, s, n) for n, (p, s) in enumerate(zip(prompts, samples, strict=True))]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sequence_in_company_is_bit_by_bit_the_one_alone(engine, seed):
    """They join and leave at random, some before their end, while the cache grows and shrinks."""
    requests = random_requests(16, seed)
    alone = [generate(engine, [asked])[0] for asked in requests]
    chance, waiting = np.random.default_rng(seed), list(enumerate(requests))
    running: dict[int, int] = {}
    texts: dict[int, list[Token]] = {}

    def note(event: Event) -> None:
        texts.setdefault(running[event.slot], []).extend(event.tokens)
        if event.finish is not None or chance.random() < 0.05:  # ended, or its client left
            running.pop(event.slot)
            engine.release(event.slot)

    while waiting or running:
        if waiting and engine.free and chance.random() < 0.7:
            number, asked = waiting.pop(0)
            event = engine.admit(asked, wants_top=bool(chance.random() < 0.3))
            running[event.slot] = number
            note(event)
        for event in engine.decode(int(chance.integers(1, 33))):
            note(event)
    whole = 0
    for number, text in texts.items():
        found = [token._replace(top=()) for token in text]
        assert found == alone[number][: len(found)]
        whole += len(found) == len(alone[number])
    assert len(texts) == 16
    assert whole >= 6
    assert engine.free == [*range(SLOTS)]


def test_the_size_of_a_chunk_changes_nothing(engine):
    requests = random_requests(SLOTS, 5)
    expected = generate(engine, requests)
    assert generate(engine, requests, 1) == generate(engine, requests, 7) == expected


@pytest.mark.slow
def test_another_capacity_gives_the_same_log_probabilities(engine):
    (prompt,) = prompts_of(GPT2, 20)
    (few,), (many,) = (
        generate(e, [request(prompt)]) for e in (Engine(GPT2, params_of(GPT2)), engine)
    )
    assert [t.id for t in few] == [t.id for t in many]
    np.testing.assert_allclose(*([t.logprob for t in x] for x in (few, many)), atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 64, 65, 66, 140])
def test_scores_are_those_of_the_full_forward(engine, length):
    (ids,) = prompts_of(GPT2, length)
    scored = engine.score(ids)
    logprobs_TV = np.asarray(full_forward(GPT2, params_of(GPT2), np.array([ids])))
    assert [token.id for token in scored] == ids[1:]
    for token, logprobs_V in zip(scored, logprobs_TV, strict=False):
        assert token.logprob == pytest.approx(logprobs_V[token.id], abs=1e-5)
        tops = dict(token.top)
        assert list(tops) == np.argsort(-logprobs_V)[:5].tolist()
        assert list(tops.values()) == pytest.approx(np.sort(logprobs_V)[:-6:-1], abs=1e-5)


def test_a_stop_token_is_the_last_and_a_limit_ends(engine):
    (prompt,) = prompts_of(GPT2, 20)
    text = [token.id for token in generate(engine, [request(prompt)])[0]]
    third = next(i for i in text if i not in text[: text.index(i)] and text.index(i) > 3)
    stopped = generate(engine, [request(prompt, stop_tokens=(199, third, 198, 197))])[0]
    assert [token.id for token in stopped] == text[: text.index(third) + 1]
    first = engine.admit(request(prompt, stop_tokens=(text[0],)))
    assert (first.finish, engine.running, engine.decode(5)) == ("stop", [], [])
    engine.release(first.slot)
    one = engine.admit(request(prompt, dataclasses.replace(GREEDY, max_new_tokens=1)))
    assert (one.finish, [t.id for t in one.tokens]) == ("length", text[:1])
    engine.release(one.slot)
    (full,) = prompts_of(GPT2, GPT2.n_ctx)
    last = engine.admit(request(full))
    assert (last.finish, len(last.tokens)) == ("length", 1)
    engine.release(last.slot)


@pytest.mark.parametrize(
    ("prompt", "stops", "words"),
    [
        ([], (), "0 tokens: expected 1 to 140"),
        ([1] * 141, (), "141 tokens"),
        ([1, 200], (), "token ids from 1 to 200: expected 0 to 199"),
        ([-1], (), "token ids from -1"),
        ([1], (1, 2, 3, 4, 5), "5 stop tokens and 4 free slots"),
    ],
)
def test_what_does_not_fit_is_refused_and_takes_no_slot(engine, prompt, stops, words):
    with pytest.raises(ValueError, match=words):
        engine.admit(request(prompt, stop_tokens=stops))
    assert engine.free == [*range(SLOTS)]


@pytest.mark.parametrize(("capacity", "context"), [(0, None), (1, 0), (1, 141)])
def test_slots_that_cannot_be_are_refused(capacity, context):
    with pytest.raises(ValueError, match="slots of"):
        Engine(GPT2, params_of(GPT2), capacity, context)


def test_samples_of_one_prompt_read_it_once(engine, monkeypatch):
    reads, read = [], engine._programs.read
    monkeypatch.setattr(engine._programs, "read", lambda *a: reads.append(1) or read(*a))
    (prompt,) = prompts_of(GPT2, 23)
    sample = SampleConfig(max_new_tokens=30, temperature=1.0)
    texts = generate(engine, [request(prompt, sample, seed) for seed in range(SLOTS)])
    assert len(reads) == 1
    assert len({tuple(t.id for t in text) for text in texts}) == SLOTS
    for _ in range(SLOTS):
        engine.admit(request(prompt))
    with pytest.raises(ValueError, match="0 free slots"):
        engine.admit(request(prompt))
    for slot in range(SLOTS):
        engine.release(slot)


@pytest.mark.slow
def test_nothing_compiles_after_warm_up():
    cfg = dataclasses.replace(GPT2, n_ctx=300, n_layer=1, n_head=2)  # of no other test
    engine, compiled = Engine(cfg, params_of(cfg), 3), []

    def listen(name: str, _: float, **more: Any) -> None:
        if name.endswith("backend_compile_duration"):
            compiled.append(more)

    engine.warm_up()
    requests = [
        request(prompt, SampleConfig(max_new_tokens=n, temperature=t), n)
        for n, t, prompt in zip(
            (300, 200, 9, 1, 60, 150),
            (1.0, 0.0, 0.5, 1.0, 1.0, 0.0),
            prompts_of(cfg, 1, 100, 150, 300, 16, 17),
            strict=True,
        )
    ]
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        generate(engine, requests[:3])
        generate(engine, requests[3:], 5)
        engine.admit(requests[0])
        engine.decode(1)
        for asked in requests[1:3]:
            engine.admit(asked, wants_top=True)
        engine.decode(32)
        for slot in range(3):
            engine.release(slot)
        engine.score(requests[2].prompt)
        assert compiled == []
        jax.jit(lambda x: x + 1)(1)
        assert compiled  # it does listen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_parameters_that_are_no_numbers_do_not_hang():
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), params_of(GPT1))
    text = generate(Engine(GPT1, broken, SLOTS), [request([1, 2, 3])])[0]
    assert len(text) == GPT1.n_ctx - 2
    assert all(0 <= token.id < GPT1.padded_vocab for token in text)

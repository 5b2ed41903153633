"""`/v1/attention` over HTTP: the weights of the model, the last 128 tokens, and wrong requests."""

from functools import partial

import httpx2 as httpx
import jax
import numpy as np
import pytest
from live_server import SHAPE, TOKENIZER, held_engine, live_server, random_params

from gptjax.config import ModelConfig
from gptjax.model.attention_maps import attention_map
from gptjax.model.gpt import init_params
from gptjax.serving.attention import SHOWN, AttentionMaps, AttentionRequest
from gptjax.tokenizers.plain import ByteTokenizer

PARAMS = random_params()
map_of = jax.jit(partial(attention_map, SHAPE))


@pytest.fixture(scope="module")
def url():
    maps = AttentionMaps(SHAPE, PARAMS, TOKENIZER, SHAPE.n_ctx, "float32")
    with live_server(held_engine(), attention=maps) as server:
        yield server.url


def ask(url, **body):
    return httpx.post(f"{url}/v1/attention", json=body, timeout=120)


def test_the_weights_are_those_of_the_head_over_prompt_and_completion(url):
    answer = ask(url, prompt="ab ", completion="é", layer=1, head=1).json()
    assert answer["tokens"] == ["a", "b", " ", "é"]
    assert answer["start"] == 0
    tokens_BT = TOKENIZER.encode("ab é")[None].astype(np.int32)
    expected_TS = map_of(PARAMS, tokens_BT, 1, 1)[0]
    np.testing.assert_allclose(answer["weights"], expected_TS, rtol=0, atol=6e-5)


@pytest.mark.slow
def test_a_completion_of_ids_stays_as_it_was_drawn(url):
    body = {"prompt": "a", "max_tokens": 4, "temperature": 2, "seed": 1, "return_token_ids": True}
    choice = httpx.post(f"{url}/v1/completions", json=body, timeout=120).json()["choices"][0]
    assert len(choice["token_ids"]) == 4
    answer = ask(url, prompt="a", completion=choice["token_ids"]).json()
    ids_BT = np.array([[*TOKENIZER.encode("a"), *choice["token_ids"]]])
    expected_TS = map_of(PARAMS, ids_BT, 0, 0)[0]
    np.testing.assert_allclose(answer["weights"], expected_TS, rtol=0, atol=6e-5)


def test_without_a_prompt_the_text_begins_with_a_new_document(url):
    answer = ask(url, completion="ab").json()
    assert answer["tokens"] == ["<|endoftext|>", "a", "b"]


def test_the_models_entry_says_that_there_are_maps(url):
    assert httpx.get(f"{url}/v1/models").json()["data"][0]["gptjax"]["attention_maps"] is True


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a", "layer": 2}, "layer"),
        ({"prompt": "a", "head": -1}, "head"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": "a" * 65}, "prompt"),
        ({"prompt": "a", "completion": 7}, "completion"),
        ({"prompt": "a", "completion": [257]}, "completion"),
        ({"prompt": "a", "heads": 1}, "heads"),
    ],
)
def test_a_wrong_field_is_named(url, body, param):
    answer = ask(url, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_tokens_beyond_the_context_have_no_row(url):
    answer = ask(url, prompt=[7] * 60, completion="abcdefg").json()
    assert answer["tokens"][-4:] == ["a", "b", "c", "d"]


@pytest.mark.slow
def test_a_long_text_shows_its_end_as_the_whole_pass_sees_it():
    cfg = ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=300, n_vocab=257, dtype="float32")
    params = jax.tree.map(lambda x: 6 * x, init_params(cfg, jax.random.key(1)))
    ids = tuple(i % 250 for i in range(200))
    maps = AttentionMaps(cfg, params, ByteTokenizer(), cfg.n_ctx, "float32")
    answer = maps.find(AttentionRequest(ids, "", 0, 1))
    assert answer["start"] == 200 - SHOWN
    whole_TS = jax.jit(partial(attention_map, cfg))(params, np.array([ids]), 0, 1)[0]
    np.testing.assert_allclose(answer["weights"], whole_TS[-SHOWN:, -SHOWN:], rtol=0, atol=6e-5)
    assert sum(answer["weights"][0]) < 0.9  # it also looks at what is not shown


def test_a_server_without_the_switch_says_how_to_get_them():
    with live_server(held_engine()) as server:
        answer = ask(server.url, prompt="a")
        assert answer.status_code == 404
        assert "--attention-maps" in answer.json()["error"]["message"]
        entry = httpx.get(f"{server.url}/v1/models").json()["data"][0]
        assert entry["gptjax"]["attention_maps"] is False


def test_the_page_comes_with_its_policy(url):
    answer = httpx.get(url)
    assert answer.text.startswith("<!doctype html>")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert httpx.post(url).status_code == 405

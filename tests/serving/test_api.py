"""The HTTP API, asked by OpenAI's own client and by hand."""

import json
import socket
import threading

import httpx2 as httpx
import numpy as np
import openai
import pytest
from live_server import (
    SHAPE,
    TOKENIZER,
    LiveServer,
    all_logprobs,
    held_engine,
    live_server,
    random_params,
    wait_until,
)

from gptjax.serving import exchange
from gptjax.serving.exchange import MAX_BODY

PROMPT = "Once "
IDS = TOKENIZER.encode("ab").tolist()


@pytest.fixture(scope="module")
def server():
    with live_server(held_engine()) as made:
        yield made


@pytest.fixture
def client(server: LiveServer):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as made:
        yield made


def post(server: LiveServer, **body) -> httpx.Response:
    return server.http.post("/v1/completions", json=body)


def answer(server: LiveServer, **body) -> dict:
    response = post(server, **body)
    assert response.status_code == 200, response.text
    return response.json()


def texts(body: dict) -> list[str]:
    return [choice["text"] for choice in body["choices"]]


def test_openais_client_completes(client):
    made = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=6, seed=1, logprobs=2)
    assert (made.object, made.model, made.id[:5]) == ("text_completion", "tiny", "cmpl-")
    (choice,) = made.choices
    assert choice.finish_reason == "length"
    assert len(choice.logprobs.tokens) == made.usage.completion_tokens == 6
    assert made.usage.prompt_tokens == 5
    assert [len(top) for top in choice.logprobs.top_logprobs] <= [3] * 6
    assert choice.logprobs.text_offset[0] == 0


def test_openais_client_streams_the_same_text(client):
    settings = {
        "model": "tiny",
        "prompt": PROMPT,
        "max_tokens": 20,
        "seed": 2,
        "n": 2,
        "logprobs": 1,
    }
    whole = client.completions.create(**settings)
    pieces, usage = ["", ""], None
    logprobs = [[], []]
    finishes = {}
    for event in client.completions.create(
        **settings, stream=True, stream_options={"include_usage": True}
    ):
        usage = event.usage or usage
        for choice in event.choices:
            pieces[choice.index] += choice.text
            logprobs[choice.index] += choice.logprobs.token_logprobs
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    assert pieces == [choice.text for choice in whole.choices]
    assert logprobs == [choice.logprobs.token_logprobs for choice in whole.choices]
    assert finishes == {c.index: c.finish_reason for c in whole.choices}
    assert usage == whole.usage


def test_openais_client_lists_the_model_and_raises_for_errors(client):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("tiny", "gptjax")
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("another")
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="another", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="tiny", prompt="a", temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="not tuned on turns"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])


def test_a_request_with_a_seed_is_the_same_in_every_company(server):
    ask = {"prompt": PROMPT, "max_tokens": 12, "n": 2, "seed": 5}
    alone = texts(answer(server, **ask))
    assert alone[0] != alone[1]
    assert (
        texts(answer(server, prompt=[PROMPT, "another", PROMPT], max_tokens=12, seed=5))[::2]
        == [alone[0]] * 2
    )
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(texts(answer(server, **ask)))),
        threading.Thread(target=lambda: answer(server, prompt="zz", max_tokens=30, n=2)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone]
    assert len({texts(answer(server, prompt="a", max_tokens=20))[0] for _ in range(3)}) > 1


def test_token_ids_and_text_are_the_same_prompt(server):
    by_text = answer(server, prompt="ab", seed=1)
    by_ids = answer(server, prompt=IDS, seed=1)
    assert by_ids["choices"] == by_text["choices"]
    both = answer(server, prompt=[IDS, IDS[:1]], seed=1)
    assert texts(both)[0] == texts(by_text)[0]
    assert both["usage"]["prompt_tokens"] == 3


def test_stop_texts_end_a_text_before_them(server):
    ask = {"prompt": PROMPT, "max_tokens": 30, "seed": 3}
    whole = texts(answer(server, **ask))[0]
    stop = whole[10:12]
    cut = answer(server, **ask, stop=["never there", stop], logprobs=0)["choices"][0]
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"
    assert "".join(cut["logprobs"]["tokens"]) == cut["text"]


def test_echo_with_logprobs_is_exact(server):
    ids = [5, 20, 17, 55, 60, 61, 29, 0, 40]
    body = answer(server, prompt=ids, max_tokens=1, echo=True, logprobs=1, temperature=0)
    logprobs = body["choices"][0]["logprobs"]
    expected = all_logprobs(random_params(), ids)
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    np.testing.assert_allclose(
        logprobs["token_logprobs"][1:-1], expected[np.arange(8), ids[1:]], atol=1e-5
    )
    np.testing.assert_allclose(
        [max(top.values()) for top in logprobs["top_logprobs"][1:]], expected.max(1), atol=1e-5
    )
    assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values())
    only = answer(server, prompt=ids, max_tokens=0, echo=True, logprobs=5)
    again = only["choices"][0]["logprobs"]["token_logprobs"]
    assert again == logprobs["token_logprobs"][:-1]
    assert only["choices"][0]["text"] == TOKENIZER.decode(ids)
    assert only["usage"]["completion_tokens"] == 0


def test_echo_shows_the_prompt_and_its_tokens_come_first(server):
    plain = answer(server, prompt="añ日", max_tokens=4, seed=1)["choices"][0]["text"]
    choice = answer(server, prompt="añ日", max_tokens=4, seed=1, echo=True, logprobs=0)["choices"][
        0
    ]
    assert choice["text"] == "añ日" + plain
    assert choice["logprobs"]["tokens"][:3] == ["a", "ñ", "日"]
    assert choice["logprobs"]["text_offset"][3] == 3
    assert answer(server, prompt="añ日", max_tokens=0, echo=True)["choices"][0]["text"] == "añ日"
    assert (
        answer(server, prompt="", max_tokens=0, echo=True, logprobs=1)["choices"][0]["text"] == ""
    )
    streamed = events(post(server, prompt="añ日", max_tokens=4, seed=1, echo=True, stream=True))
    assert "".join(piece["choices"][0]["text"] for piece in streamed) == "añ日" + plain


def events(response: httpx.Response) -> list[dict]:
    """The objects of a stream, which ends as it must."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_prompt_may_fill_the_context_and_not_more(server):
    full = answer(server, prompt=[1] * SHAPE.n_ctx, max_tokens=10)
    assert full["choices"][0]["finish_reason"] in ("length", "stop")
    assert full["usage"]["completion_tokens"] == 1
    error = post(server, prompt="a" * (SHAPE.n_ctx + 1)).json()["error"]
    assert error["code"] == "context_length_exceeded"


def test_no_prompt_begins_a_document(server):
    expected = texts(answer(server, prompt=[TOKENIZER.eot_id], seed=1))
    assert texts(answer(server, seed=1)) == texts(answer(server, prompt="", seed=1)) == expected


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("POST", "/v1/completions", b"{", {}, 400),
        ("POST", "/v1/completions", b'{"n": 0}', {}, 400),
        ("POST", "/v1/completions", b"{}", {"content-type": "text/plain"}, 415),
        ("POST", "/v1/completions", b'{"prompt": "' + b"a" * MAX_BODY + b'"}', {}, 413),
        ("POST", "/v1/chat/completions", b"{}", {}, 404),
        ("GET", "/v1/completions", None, {}, 405),
        ("OPTIONS", "/v1/completions", None, {"origin": "http://evil.example"}, 405),
        ("GET", "/v1/nothing", None, {}, 404),
        ("POST", "/v1/completions/", b"{}", {}, 404),
        ("POST", "/v1/completions", rb'{"\ud800": 1}', {}, 400),
        ("GET", "/health", None, {"host": "evil.example"}, 403),
        ("POST", "/v1/completions", b"{}", {"host": "127.0.0.1.evil.example:80"}, 403),
    ],
)
def test_errors_have_the_form_of_openai(server, method, path, content, headers, status):
    headers = {"content-type": "application/json"} | headers
    response = server.http.request(method, path, content=content, headers=headers)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "access-control-allow-origin" not in response.headers


def test_a_body_without_an_end_is_refused_at_its_limit(server):
    def endless():
        for _ in range(40):
            yield b" " * 2**16

    headers = {"content-type": "application/json"}
    response = server.http.post("/v1/completions", content=endless(), headers=headers)
    assert response.status_code == 413


def test_a_body_that_takes_too_long_ends_its_connection(server, monkeypatch):
    monkeypatch.setattr(exchange, "BODY_SECONDS", 0.1)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: 9\r\n\r\n{{".encode())
        received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 408")


def test_a_key_opens_everything_but_health():
    with live_server(held_engine(), key="s3cret") as locked:
        for headers in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "Basic s3cret"}):
            for path in ("/v1/models", "/metrics", "/v1/nothing"):
                response = locked.http.get(path, headers=headers)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
        assert locked.http.get("/health", headers={"host": "any.example"}).is_success
        with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="s3cret") as client:
            assert client.models.list().data[0].id == "tiny"
        bad = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="é".encode().decode("latin-1"))
        with bad, pytest.raises((openai.AuthenticationError, UnicodeError)):
            bad.models.list()


def slow_request(server: LiveServer, **body) -> socket.socket:
    """A request that runs and is held in the device."""
    server.engine.gate.clear()
    before = sequences(server)
    # the most likely tokens: a random text may end after any of them
    body = {"prompt": "a", "max_tokens": 60, "temperature": 0, **body}
    raw = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(raw), raw)
    )
    wait_until(lambda: sequences(server) > before)
    return connection


def sequences(server: LiveServer) -> float:
    return sum(server.metric(f"gptjax_{state}_sequences") for state in ("running", "waiting"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(server, stream):
    cancelled = server.metric("gptjax_requests_total", outcome="cancelled")
    slow_request(server, stream=stream).close()
    wait_until(lambda: server.metric("gptjax_requests_total", outcome="cancelled") == cancelled + 1)
    calls = len(server.engine.steps)
    server.engine.gate.set()
    server.wait_idle()
    assert len(server.engine.steps) <= calls + 2


def test_beyond_the_queue_the_answer_is_429(server):
    refused = server.metric("gptjax_requests_total", outcome="refused")
    connections = [slow_request(server), slow_request(server)]
    response = post(server, prompt=["a"] * 5)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["type"] == "rate_limit_error"
    wait_until(lambda: server.metric("gptjax_requests_total", outcome="refused") > refused)
    assert server.metric("gptjax_requests_total", outcome="refused") == refused + 1
    server.engine.gate.set()
    for connection in connections:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()
    server.wait_idle()


def test_a_request_out_of_time_is_told_so_in_either_form():
    with live_server(held_engine(), timeout=0.2) as hasty:
        for stream in (False, True):
            connection = slow_request(hasty, stream=stream)
            threading.Timer(0.3, hasty.engine.gate.set).start()
            received = b""
            while b"timeout" not in received:
                received += (new := connection.recv(4096))
                assert new, received
            assert received.startswith(b"HTTP/1.1 200" if stream else b"HTTP/1.1 503")
            connection.close()
            hasty.wait_idle()
        wait_until(lambda: hasty.metric("gptjax_requests_total", outcome="timed_out") == 2)


def test_a_broken_engine_is_seen_in_the_answer_and_in_health(capsys):
    with live_server(held_engine()) as broken:
        assert broken.http.get("/health").json() == {"status": "ok"}
        connection = slow_request(broken)
        broken.engine.error = RuntimeError("the device is gone")
        broken.engine.gate.set()
        assert connection.recv(100).startswith(b"HTTP/1.1 500")
        connection.close()
        assert broken.http.get("/health").status_code == 503
        assert post(broken, prompt="a").status_code == 500
    broken.engine.error = None
    for slot in list(broken.engine.running):
        broken.engine.release(slot)
    capsys.readouterr()


def test_metrics_count_what_happened(server):
    server.wait_idle()
    names = ("gptjax_prompt_tokens_total", "gptjax_generated_tokens_total")
    before = [server.metric(name) for name in names]
    calls = server.metric("gptjax_time_to_first_token_seconds_count")
    body = answer(server, prompt="abc", max_tokens=7, n=2)
    text = server.http.get("/metrics").text
    prompt, generated = (server.metric(name) - old for name, old in zip(names, before, strict=True))
    assert (prompt, generated) == (6, body["usage"]["completion_tokens"])
    assert server.metric("gptjax_time_to_first_token_seconds_count") == calls + 2
    for line in (
        'gptjax_requests_total{model="tiny",outcome="answered"}', 'gptjax_slots{model="tiny"} 2.0',
        'gptjax_running_sequences{model="tiny"} 0.0', 'gptjax_waiting_sequences{model="tiny"} 0.0',
        "gptjax_queue_time_seconds_bucket", "gptjax_time_per_token_seconds_sum",
    ):  # fmt: skip
        assert line in text

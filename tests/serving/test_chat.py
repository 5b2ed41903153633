"""`/v1/chat/completions`, asked by OpenAI's own client and by hand."""

import json

import openai
import pytest
from live_server import SHAPE, TOKENIZER, LiveServer, held_engine, live_server

from gptjax.data.templates import Message, prompt_tokens
from gptjax.serving.chat import parse_chat
from gptjax.serving.protocol import Limits
from gptjax.serving.refusals import Refusal

HELLO = [{"role": "user", "content": "Hi"}]
LONGER = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "a"},
]
LIMITS = Limits(max_tokens=100, max_sequences=6, n_vocab=257)


@pytest.fixture(scope="module")
def server():
    with live_server(held_engine(), template="chat") as made:
        yield made


@pytest.fixture
def client(server: LiveServer):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as made:
        yield made


def test_openais_client_gets_a_message(client):
    made = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=6, seed=1)
    assert (made.object, made.model, made.id[:9]) == ("chat.completion", "tiny", "chatcmpl-")
    (choice,) = made.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert len(choice.message.content) == made.usage.completion_tokens == 6
    prompt = prompt_tokens(TOKENIZER, "chat", [Message("user", "Hi")])
    assert made.usage.prompt_tokens == len(prompt)
    assert choice.logprobs is None


def test_the_answer_is_the_completion_of_the_templates_tokens(client):
    ids = prompt_tokens(TOKENIZER, "chat", [Message("user", "Hi")]).tolist()
    settings = {"model": "tiny", "max_completion_tokens": 9, "temperature": 0.7, "seed": 5, "n": 2}
    said = client.chat.completions.create(messages=HELLO, **settings)
    settings["max_tokens"] = settings.pop("max_completion_tokens")
    text = client.completions.create(prompt=ids, **settings)
    assert [c.message.content for c in said.choices] == [c.text for c in text.choices]


def test_openais_client_streams_the_same_message(client):
    settings = {
        "model": "tiny", "messages": HELLO, "max_tokens": 20, "seed": 2, "n": 2, "logprobs": True,
    }  # fmt: skip
    whole = client.chat.completions.create(**settings)
    texts, logprobs, roles, finishes, usage = ["", ""], [[], []], [[], []], {}, None
    for chunk in client.chat.completions.create(
        **settings, stream=True, stream_options={"include_usage": True}
    ):
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index].append(choice.delta.role)
            if choice.logprobs:
                logprobs[choice.index] += choice.logprobs.content
            if choice.finish_reason:
                assert choice.delta.content is None
                finishes[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert logprobs == [choice.logprobs.content for choice in whole.choices]
    assert finishes == {c.index: c.finish_reason for c in whole.choices}
    assert usage == whole.usage
    for own in roles:
        assert own[0] == "assistant"
        assert set(own[1:]) == {None}


def test_log_probabilities_have_their_bytes_and_alternatives(client):
    (choice,) = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=5, seed=1, logprobs=True, top_logprobs=3
    ).choices
    spoken = choice.logprobs.content
    assert bytes(b for token in spoken for b in token.bytes).decode() == choice.message.content
    for token in spoken:
        likely = [one.logprob for one in token.top_logprobs]
        assert len(likely) == 3
        assert likely == sorted(likely, reverse=True)
        assert token.logprob <= likely[0]


def test_end_of_text_ends_a_message(server):
    body = {"messages": HELLO, "seed": 1, "max_tokens": 30}

    def choice(server: LiveServer) -> dict:
        return server.http.post("/v1/chat/completions", json=body).json()["choices"][0]

    whole = choice(server)["message"]["content"]
    (stop,) = TOKENIZER.encode(whole[8])
    with live_server(held_engine(), template="chat", stop_token=int(stop)) as ending:
        ended = choice(ending)
    assert ended["finish_reason"] == "stop"
    assert ended["message"]["content"] == whole[: whole.index(whole[8])]


def test_a_conversation_that_fills_the_context_is_refused_as_openai_does(client):
    long = [{"role": "user", "content": "a" * SHAPE.n_ctx}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 64") as caught:
        client.chat.completions.create(model="tiny", messages=long)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_a_model_that_is_not_tuned_on_turns_is_listed_so():
    with live_server(held_engine()) as server:
        assert server.http.get("/v1/models").json()["data"][0]["gptjax"]["chat"] is False
        response = server.http.post("/v1/chat/completions", json={"messages": HELLO})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "no_chat_model")


def parsed(**body):
    return parse_chat({"messages": HELLO, **body}, LIMITS)


def test_messages_become_a_conversation():
    messages, request = parsed(messages=LONGER)
    assert messages == [
        Message("system", "Be brief"),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "a"),
    ]
    assert (request.max_tokens, request.n, request.stream, request.logprobs) == (
        100,
        1,
        False,
        None,
    )
    names = ("model", "max_tokens", "max_completion_tokens", "stop", "tools", "response_format")
    assert parsed(**dict.fromkeys(names)) == parsed()
    assert parsed(max_tokens=5, max_completion_tokens=7)[1].max_tokens == 7


WRONG = [
    ("messages", None), ("messages", []), ("messages", "Hi"), ("messages", [*HELLO, *HELLO]),
    ("messages", LONGER[:1]), ("messages", LONGER[:3]), ("messages", LONGER[2:]),
    ("messages.[0]", ["Hi"]), ("messages.[0].role", [{"role": "tool", "content": "a"}]),
    ("messages.[0].content", [{"role": "user"}]), ("content_", [{**HELLO[0], "content_": 1}]),
    ("messages.[0].content", [{"role": "user", "content": [{"type": "image_url"}]}]),
    ("messages.[0].content", [{"role": "user", "content": []}]), ("max_tokens", 0),
    ("max_completion_tokens", 101), ("n", 7), ("temperature", -1), ("top_p", 0), ("stop", [""]),
    ("top_logprobs", 2), ("logprobs", 1), ("stream_options", {}), ("seed", -1), ("echo", True),
    ("prompt", "a"), ("tools", [{"type": "f"}]), ("response_format", {"type": "json_object"}),
    ("presence_penalty", 1), ("best_of", 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("param", "value"), WRONG, ids=[f"{p}-{i}" for i, (p, _) in enumerate(WRONG)]
)
def test_a_wrong_field_of_a_chat_is_named(param, value):
    field = "messages" if param.startswith("messages") or param == "content_" else param
    with pytest.raises(Refusal) as caught:
        parsed(**{field: value})
    assert (caught.value.status, caught.value.param) == (400, param)
    assert len(json.dumps(caught.value.body())) < 400


def test_a_chats_messages_are_not_repeated_in_errors():
    with pytest.raises(Refusal) as caught:
        parsed(messages=[{"role": "user", "content": {"secret": 1}}])
    assert "secret" not in caught.value.message

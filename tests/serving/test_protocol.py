"""The body of a completion request: every field right, and wrong in every way."""

import json

import pytest

from gptjax.config import SampleConfig
from gptjax.serving.protocol import Limits, parse_body, parse_completion
from gptjax.serving.refusals import Refusal

LIMITS = Limits(max_tokens=100, max_sequences=6, n_vocab=257)


def parsed(**body):
    return parse_completion(body, LIMITS)


def test_an_empty_body_has_the_defaults_of_openai():
    request = parsed()
    assert request.prompts == ("",)
    assert request.sample == SampleConfig(
        max_new_tokens=16, temperature=1.0, top_k=None, prompt="", stop=()
    )
    assert (request.max_tokens, request.n, request.seed, request.logprobs) == (16, 1, None, None)
    assert (request.echo, request.stream, request.include_usage) == (False, False, False)


def test_null_is_as_good_as_absent():
    names = (
        *("prompt", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "logprobs", "echo"),
        *("stream", "stream_options", "model", "user", "best_of", "presence_penalty", "suffix"),
        *("frequency_penalty", "logit_bias", "top_k", "min_p", "repetition_penalty"),
    )
    assert parsed(**dict.fromkeys(names)) == parsed()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (None, ("",)),
    ],
)
def test_a_prompt_has_four_forms(prompt, expected):
    assert parsed(prompt=prompt).prompts == expected


def test_samplers_reach_the_settings():
    request = parsed(
        temperature=0, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=1.2, stop="x",
        max_tokens=5, seed=7, n=2, best_of=2, logprobs=0, stream=True,
        stream_options={"include_usage": True}, logit_bias={}, presence_penalty=0.0,
    )  # fmt: skip
    assert request.sample == SampleConfig("", 5, 0.0, 3, 0.5, 0.1, 1.2, ("x",))
    assert (request.seed, request.n, request.logprobs, request.include_usage) == (7, 2, 0, True)
    assert parsed(top_k=-1).sample.top_k is parsed(top_k=0).sample.top_k is None
    assert parsed(max_tokens=0, echo=True).max_tokens == 0


WRONG = [
    ("prompt", 3), ("prompt", []), ("prompt", [[]]), ("prompt", ["a", 1]), ("prompt", [1, "a"]),
    ("prompt", [257]), ("prompt", [-1]), ("prompt", [True]), ("prompt", [[1], 2]),
    ("prompt", [1.0]), ("prompt", ["a"] * 7), ("prompt", {"a": 1}), ("prompt", [10**400]),
    ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 101), ("max_tokens", 1.5),
    ("max_tokens", "5"), ("max_tokens", True), ("n", 0), ("n", 7), ("best_of", 2),
    ("temperature", -0.1), ("temperature", 101), ("temperature", "hot"), ("temperature", True),
    ("temperature", float("inf")), ("temperature", float("nan")), ("top_p", 0), ("top_p", 1.1),
    ("min_p", 1), ("min_p", -1), ("repetition_penalty", 0), ("top_k", -2), ("top_k", 1.0),
    ("stop", ""), ("stop", ["a"] * 5), ("stop", [1]), ("stop", 1), ("stop", {"a": "b"}),
    ("seed", -1), ("seed", 2**32), ("seed", 0.5), ("logprobs", 6), ("logprobs", True),
    ("echo", 1), ("echo", "yes"), ("stream", 0), ("stream_options", {"include_usage": True}),
    ("presence_penalty", 0.5), ("frequency_penalty", -1), ("logit_bias", {"1": 5}),
    ("suffix", "x"), ("model", 3), ("user", []), ("max_tokns", 5), ("messages", []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), WRONG, ids=[f"{f}-{i}" for i, (f, _) in enumerate(WRONG)]
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(Refusal) as caught:
        parsed(**{field: value})
    error = caught.value.body()["error"]
    assert (caught.value.status, error["param"]) == (400, field)
    assert error["type"] == "invalid_request_error"
    assert field in error["message"] or field == "prompt"
    assert len(error["message"]) < 300


def test_messages_say_what_was_expected_and_what_came():
    with pytest.raises(Refusal, match=r"top_p must be a number in \(0, 1\], not 2"):
        parsed(top_p=2)
    with pytest.raises(Refusal, match=r"did you mean max_tokens\?"):
        parsed(max_token=5)
    with pytest.raises(Refusal, match="at most 6, the slots and the queue"):
        parsed(prompt=["a", "b"], n=4)
    for options in ({"include_usage": 1}, {"other": True}, [], "yes"):
        with pytest.raises(Refusal):
            parsed(stream=True, stream_options=options)


def test_a_prompt_is_not_repeated_in_a_message():
    with pytest.raises(Refusal) as caught:
        parsed(prompt={"secret": "words"})
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"3", b"null", b'"text"', b"\xff\xfe", b'{"a": NaN}', b'{"a": Infinity}',
        b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}",
        rb'{"prompt": "\ud800"}', rb'{"\uDFFF": 1}', rb'{"stream": "\ude00\ud83d"}',
    ],
)  # fmt: skip
def test_a_body_that_is_no_object_of_json_is_refused(raw):
    with pytest.raises(Refusal) as caught:
        parse_body(raw)
    assert caught.value.status == 400


def test_a_body_is_read_as_json():
    for text in ("naïve", "\N{GRINNING FACE}"):
        for is_ascii in (True, False):
            raw = json.dumps({"prompt": text}, ensure_ascii=is_ascii).encode()
            assert parse_body(raw) == {"prompt": text}

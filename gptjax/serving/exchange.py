"""A request for text on the wire: the body in, the answer out, and clients that leave early.

It is written against ASGI, the interface below Starlette, since it listens for the end of the
connection while it answers.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gptjax.serving.completion import DONE, Completion, encoded, event
from gptjax.serving.metrics import ModelMetrics
from gptjax.serving.protocol import parse_body, parse_completion
from gptjax.serving.refusals import Refusal
from gptjax.serving.responses import Envelope, TokenTexts
from gptjax.serving.service import ServedModel, Service

MAX_BODY = 2**20  # bytes
BODY_SECONDS = 30.0
SENDING_SECONDS = 60.0  # that a client may take longer than the model
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold the events back
}

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


Begin = Callable[[ServedModel, dict[str, Any]], Awaitable[Completion]]
"""Makes the completion that a body asks of a model; raises `Refusal` for a wrong body."""


class TextRoute:
    """A route that answers with text, an ASGI application that notices when its client leaves."""

    def __init__(self, service: Service, begin: Begin):
        self._service, self._begin = service, begin

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request; raises `Refusal` before the answer has begun."""
        with _counted(self._service.default.metrics) as ending:
            try:
                body = parse_body(await read_body(scope, receive))
                model = self._service.find(body.get("model"))
                ending.metrics = model.metrics
                await _answer(await self._begin(model, body), receive, send, ending)
            except ClientLeft:
                if ending.outcome == "answered":  # it had not been told of an error
                    ending.outcome = "cancelled"


async def begin_text(model: ServedModel, body: dict[str, Any]) -> Completion:
    """The completion that a body of `/v1/completions` asks for; raises `Refusal`."""
    request = parse_completion(body, model.limits)
    prompts = [
        await asyncio.to_thread(encoded, model.tokenizer, prompt, model.context)
        for prompt in request.prompts
    ]
    texts = TokenTexts(model.tokenizer)
    envelope = Envelope(model.name, texts, request.logprobs, request.token_ids)
    return Completion(request, prompts, model.tokenizer, model.scheduler, envelope)


async def _answer(completion: Completion, receive: Receive, send: Send, ending: "_Ending") -> None:
    answer = _stream if completion.is_stream else _whole
    with completion:
        working = asyncio.ensure_future(answer(completion, send, ending))
        leaving = asyncio.ensure_future(_client_left(receive))
        try:
            limit = completion.timeout + SENDING_SECONDS
            await asyncio.wait(
                {working, leaving}, timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
            if not working.done():
                raise ClientLeft
            working.result()
        finally:
            working.cancel()
            leaving.cancel()


async def _whole(completion: Completion, send: Send, _: "_Ending") -> None:
    body = json.dumps(await completion.whole(), allow_nan=False).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    await send(_start(headers))
    await send({"type": "http.response.body", "body": body})


async def _stream(completion: Completion, send: Send, ending: "_Ending") -> None:
    """Send events as they come; an error after the first of them is an event too."""
    has_begun = False
    try:
        async for piece in completion.events():
            if not has_begun:
                await send(_start(STREAM_HEADERS))
                has_begun = True
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except Refusal as refusal:
        if not has_begun:
            raise
        ending.outcome = _outcome_of(refusal)
        await send({"type": "http.response.body", "body": event(refusal.body()), "more_body": True})
    await send({"type": "http.response.body", "body": DONE})


def _start(headers: dict[str, str]) -> dict[str, Any]:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": pairs}


class ClientLeft(Exception):
    """The connection is closed, or the client does not read."""


async def _client_left(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(scope: Any, receive: Receive) -> bytes:
    """The body of a request in JSON, within the limits of size and time."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    kind = headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        message = f"the content type must be application/json, not {kind[:100]!r}"
        raise Refusal(415, message, code="unsupported_media_type")
    too_large = Refusal(413, f"the body has more than {MAX_BODY} bytes", code="body_too_large")
    if headers.get("content-length", "").isdigit() and int(headers["content-length"]) > MAX_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                body += message.get("body", b"")
                if len(body) > MAX_BODY:
                    raise too_large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        message = f"the body took longer than {BODY_SECONDS:g} s"
        raise Refusal(408, message, headers={"Connection": "close"}) from None


@dataclass
class _Ending:
    metrics: ModelMetrics
    """Of the model that is asked; those of the default until it is known."""
    outcome: str = "answered"


@contextmanager
def _counted(metrics: ModelMetrics) -> Iterator[_Ending]:
    """Count a request by the way it ends."""
    ending, began = _Ending(metrics), time.perf_counter()
    try:
        yield ending
    except Refusal as refusal:
        ending.outcome = _outcome_of(refusal)
        raise
    except asyncio.CancelledError:
        ending.outcome = "cancelled"
        raise
    except BaseException:
        ending.outcome = "failed"
        raise
    finally:
        ending.metrics.ended(ending.outcome, time.perf_counter() - began)


def _outcome_of(refusal: Refusal) -> str:
    if refusal.code == "timeout":
        return "timed_out"
    if refusal.status in (429, 503):
        return "refused"
    return "failed" if refusal.status >= 500 else "invalid"

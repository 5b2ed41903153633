"""A server that answers as the API does, with scripted texts: slow, hostile or failing ones."""

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gptjax.serving.page import read_page

STORY = [
    "",
    "once",
    "upon",
    "a",
    "time",
    "there",
    "was",
    "a",
    "small",
    "model",
    "that",
    "liked",
    "to",
    "count",
    "its",
    "tokens.",
][1:]
HOSTILE = ["<script>alert(1)</script>", " <img src=x onerror=alert(2)>", "&lt;b&gt;", '" onclick="']
EURO = ["bytes:\\xe2\\x82", "bytes:\\xac"]
END = "<|endoftext|>"
ABOUT = {"n_layer": 2, "n_head": 3, "context": 64, "attention_maps": True, "chat": False}


@dataclass
class Script:
    """What the server shall do, and what it has seen."""

    tokens: list[str] = field(default_factory=lambda: [f" {word}" for word in STORY])
    pause: float = 0.0
    """Seconds before each token."""
    fails: tuple[int, str] | None = None
    """The status and message with which a completion is refused."""
    breaks_after: int | None = None
    """The connection ends without `[DONE]` after so many tokens."""
    api_key: str = ""
    chats: tuple[str, ...] = ()
    """Further models, which are tuned on turns; the first of them is the default."""
    most_messages: int = 100
    """A longer conversation does not fit the context."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a client went away in the middle."""
    url: str = ""


def chances(number: int) -> dict[str, float]:
    """The log-probability of each alternative at a place; the first one is drawn."""
    likely = (0.93, 0.31, 0.12, 0.03, 0.004)[number % 5]
    others = {f" other{i}": math.log((1 - likely) / 2**i / 2) for i in range(1, 5)}
    return {"": math.log(likely), **others}


def events(tokens: list[str]) -> Iterator[dict[str, Any]]:
    """One event a token, in the format of `/v1/completions` with `stream` and `logprobs`."""
    held = b""
    for number, token in enumerate(tokens):
        text = "" if token == END else token
        if token.startswith("bytes:"):
            held += bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
            text, held = (held.decode(), b"") if token == EURO[-1] else ("", held)
        top = {name or token: value for name, value in chances(number).items()}
        logprobs = {"tokens": [token], "token_logprobs": [top[token]], "top_logprobs": [top]}
        yield one_choice(text, logprobs, [number])
    yield one_choice("", None, [], "length")


def one_choice(text: str, logprobs: Any, ids: list[int], finish: str | None = None) -> dict:
    """An event; the id of a token is its place in the script."""
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}
    return {"choices": [{**choice, "token_ids": ids}]}


def chunks(tokens: list[str]) -> Iterator[dict[str, Any]]:
    """The same tokens in the format of `/v1/chat/completions`, and their number."""

    def chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    yield chunk({"role": "assistant", "content": ""})
    yield from (chunk({"content": token}) for token in tokens)
    yield chunk({}, "stop")
    yield {"choices": [], "usage": {"completion_tokens": len(tokens)}}


def attention(body: dict[str, Any], drawn: list[str]) -> dict[str, Any]:
    """A triangle of weights over the words of the prompt and the drawn tokens."""
    tokens = [f" {word}" for word in body["prompt"].split()]
    tokens += [drawn[i] for i in body["completion"] or ()]
    weights = []
    for t in range(len(tokens)):
        row = [
            2.0 ** -((t - s) % (body["layer"] + 3)) if s <= t else 0.0 for s in range(len(tokens))
        ]
        weights.append([round(w / sum(row), 4) for w in row])
    return {"tokens": tokens, "weights": weights, "start": 0}


@contextmanager
def serve_script(script: Script) -> Iterator[Script]:
    """The server on a free port of 127.0.0.1 while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def answer_json(self, status: int, content: Any) -> None:
            self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def refuse(self, status: int, message: str, code: str | None = None) -> None:
            self.answer_json(status, {"error": {"message": message, "type": "x", "code": code}})

        def lacks_key(self) -> bool:
            given = self.headers.get("Authorization", "")
            if script.api_key and given != f"Bearer {script.api_key}":
                self.refuse(401, "Incorrect API key provided.")
                return True
            return False

        def do_GET(self) -> None:
            if self.path == "/":
                self.answer(200, *read_page())
            elif self.path != "/v1/models":
                self.refuse(404, f"no {self.path}")
            elif not self.lacks_key():
                chats = [{"id": name, "gptjax": ABOUT | {"chat": True}} for name in script.chats]
                data = [*chats, {"id": "small-model", "gptjax": ABOUT}]
                self.answer_json(200, {"data": data})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.bodies.append({"path": self.path, **body})
            if self.lacks_key():
                return
            if self.path == "/v1/attention":
                self.answer_json(200, attention(body, script.tokens))
            elif script.fails:
                self.refuse(*script.fails)
            elif len(body.get("messages", ())) > script.most_messages:
                self.refuse(400, "too many tokens", "context_length_exceeded")
            else:
                tokens = script.tokens[: body["max_tokens"]]
                self.stream(chunks(tokens) if "messages" in body else events(tokens))

        def stream(self, answer: Iterator[dict[str, Any]]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                for number, event in enumerate(answer):
                    if number == script.breaks_after:
                        return
                    time.sleep(script.pause)
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                    self.wfile.flush()
                self.wfile.write(b"data: [DONE]\n\n")
            except (BrokenPipeError, ConnectionResetError):
                script.left.set()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""A server that grades as scripted, with OpenAI's chat completions, on 127.0.0.1."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Grader:
    """What the server answers, one after the other, and what it was asked."""

    answers: list[Any]
    """A text becomes the content of a chat completion, a number a status, bytes are sent as is."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def grading(*answers: Any) -> Iterator[Grader]:
    grader = Grader(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers["Content-Length"])
            grader.bodies.append(json.loads(self.rfile.read(length)))
            grader.keys.append(self.headers["Authorization"])
            answer = grader.answers.pop(0)
            status = answer if isinstance(answer, int) else 200
            if isinstance(answer, bytes):
                body = answer
            elif isinstance(answer, int):
                body = b'{"error": {"message": "no"}}'
            else:
                message = {"role": "assistant", "content": answer}
                body = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After-Ms", "1")  # the client would wait for half a second
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    grader.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield grader
    finally:
        server.shutdown()
        server.server_close()

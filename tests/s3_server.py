"""An S3-compatible store on this machine, which can be late, refuse or fall silent."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

WORKS, LATE, REFUSES = "works", "late", "refuses"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"
}  # fmt: skip
LATE_SECONDS = 0.5


class S3:
    """Its address, and how it behaves from now on."""

    def __init__(self, app: Callable[..., Iterable[bytes]]):
        self._app, self.mode, self.asked = app, WORKS, 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.asked += 1
        if self.mode == LATE:
            time.sleep(LATE_SECONDS)
        if self.mode == REFUSES:
            start_response("503 Slow Down", [("Content-Type", "text/plain")])
            return [b"busy"]
        return self._app(environ, start_response)

    def during(self, mode: str, until: Callable[[], bool]) -> None:
        """Behave like `mode` until something happened, in the background."""

        def change() -> None:
            self.mode = mode
            while not until():
                time.sleep(0.02)
            self.mode = WORKS

        threading.Thread(target=change, daemon=True).start()


@contextmanager
def s3_server() -> Iterator[S3]:
    """A store with one bucket, `bucket`, for this process and those that it starts."""
    pytest.importorskip("moto", reason="moto is not installed: make setup-reference")
    pytest.importorskip("s3fs", reason="s3fs is not installed: make setup-reference")
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log_request(self, *_: Any) -> None:
            pass

    store = S3(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
    before = {name: os.environ.get(name) for name in here}
    os.environ.update(here)
    try:
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield store
    finally:
        server.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

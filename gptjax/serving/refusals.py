"""The errors of the API, in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

OpenAI's clients turn the status into an exception and show the message, so the message says what
was expected, what came and what to do.
"""

from collections.abc import Mapping
from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
WAIT_SECONDS = "1"  # OpenAI's clients try again after this time, twice, with growing pauses


class Refusal(Exception):
    """A request that gets no answer: the HTTP status and the fields of the error."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as the JSON of an answer, or of an event in a stream."""
        kind = TYPES.get(self.status, TYPES[400] if self.status < 500 else TYPES[500])
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}


def invalid(param: str | None, message: str, code: str | None = None) -> Refusal:
    """A request that is wrong in the field `param`: status 400."""
    return Refusal(400, message, param, code)


def queue_full(waiting: int) -> Refusal:
    """A request for which the queue has no room: status 429."""
    message = (
        f"the server is busy: {waiting} sequences wait already. Try again later, or start it with "
        "a larger --max-batch or --max-queue"
    )
    return Refusal(429, message, code="queue_full", headers={"Retry-After": WAIT_SECONDS})


def shutting_down() -> Refusal:
    """A request to a server that is told to stop: status 503."""
    return Refusal(503, "the server is shutting down", code="shutting_down")


def out_of_time(seconds: float) -> Refusal:
    """A request that took longer than the server allows: status 503."""
    message = f"the request took longer than {seconds:g} s, the --request-timeout of this server"
    headers = {"x-should-retry": "false"}  # OpenAI's clients would, and take as long again
    return Refusal(503, message, code="timeout", headers=headers)


def broken() -> Refusal:
    """A request that met an error of the server itself: status 500."""
    message = "the server met an error of its own, which is on its standard error"
    return Refusal(500, message, code="internal_error")

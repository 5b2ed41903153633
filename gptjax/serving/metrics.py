"""What the server counts and times, in Prometheus's text format at `/metrics`.

Each server has a registry of its own, so that several can live in one process. Durations are in
seconds.
"""

import importlib
from collections.abc import Callable

from gptjax.base.errors import UserError

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
OUTCOMES = ("answered", "refused", "invalid", "cancelled", "timed_out", "failed")


class ServingMetrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        registry = self.registry = CollectorRegistry()

        def histogram(name: str, words: str) -> Histogram:
            return Histogram(f"gptjax_{name}_seconds", words, buckets=SECONDS, registry=registry)

        words = "Completion requests by outcome; refused ones met a full queue or a shutdown"
        self._requests = Counter("gptjax_requests", words, ["outcome"], registry=registry)
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        self._prompt = Counter("gptjax_prompt_tokens", "Tokens of prompts", registry=registry)
        self._generated = Counter(
            "gptjax_generated_tokens", "Tokens drawn from the model", registry=registry
        )
        self._first = histogram("time_to_first_token", "From arrival to a sequence's first token")
        self._token = histogram(
            "time_per_token", "Between two tokens of a sequence, mean of a call"
        )
        self._queue = histogram("queue_time", "From arrival to the beginning of a sequence's work")
        self._whole = histogram("request_time", "From arrival to the end of an answered request")
        self._gauge = lambda name, words: Gauge(f"gptjax_{name}", words, registry=registry)

    def watch(self, name: str, words: str, value: Callable[[], float]) -> None:
        """Add a gauge that shows what `value` returns when it is asked."""
        self._gauge(name, words).set_function(value)

    def ended(self, outcome: str, seconds: float) -> None:
        """Count a request by one of `OUTCOMES`, and time it if it was answered."""
        self._requests.labels(outcome).inc()
        if outcome == "answered":
            self._whole.observe(seconds)

    def began(self, prompt_tokens: int, queue_seconds: float) -> None:
        """A sequence leaves the queue."""
        self._prompt.inc(prompt_tokens)
        self._queue.observe(queue_seconds)

    def spoke_first(self, seconds: float) -> None:
        """A sequence has its first token, so long after the arrival of its request."""
        self._generated.inc()
        self._first.observe(seconds)

    def spoke(self, tokens: int, seconds: float) -> None:
        """A call of the device gave a sequence so many tokens."""
        self._generated.inc(tokens)
        self._token.observe(seconds / tokens)

    def as_text(self) -> bytes:
        """All of it in Prometheus's text format, version 0.0.4."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


def check_libraries() -> None:
    """Raise `UserError` if a library of the extra `serve` is not installed."""
    for name in ("starlette", "uvicorn", "prometheus_client"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            message = f"serving needs {name}, which is not installed: pip install 'gptjax[serve]'"
            raise UserError(message) from error

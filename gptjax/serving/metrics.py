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
    """Counters, gauges and histograms of one server, each with the label `model`."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        registry = self.registry = CollectorRegistry()

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"gptjax_{name}", words, ("model", *labels), registry=registry)

        def gauge(name: str, words: str) -> Gauge:
            return Gauge(f"gptjax_{name}", words, ("model",), registry=registry)

        def histogram(name: str, words: str) -> Histogram:
            name = f"gptjax_{name}_seconds"
            return Histogram(name, words, ("model",), buckets=SECONDS, registry=registry)

        words = "Requests by outcome; refused ones met a full queue or a shutdown"
        self.requests = counter("requests", words, "outcome")
        self.prompt = counter("prompt_tokens", "Tokens of prompts")
        self.generated = counter("generated_tokens", "Tokens drawn from the model")
        self.first = histogram("time_to_first_token", "From arrival to a sequence's first token")
        self.token = histogram("time_per_token", "Between two tokens of a sequence, mean of a call")
        self.queue = histogram("queue_time", "From arrival to the beginning of a sequence's work")
        self.whole = histogram("request_time", "From arrival to the end of an answered request")
        self.running = gauge("running_sequences", "Sequences in slots")
        self.waiting = gauge("waiting_sequences", "Sequences in the queue")
        self.slots = gauge("slots", "Sequences that run at once, at most")

    def of(self, model: str) -> "ModelMetrics":
        """The metrics of one model of the server, by its name."""
        return ModelMetrics(self, model)

    def as_text(self) -> bytes:
        """All of it in Prometheus's text format, version 0.0.4."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class ModelMetrics:
    """What one model of a server counts and times."""

    def __init__(self, server: ServingMetrics, model: str):
        self._server, self._model = server, model
        for outcome in OUTCOMES:
            server.requests.labels(model, outcome)
        self._prompt, self._generated = server.prompt.labels(model), server.generated.labels(model)
        self._first, self._token = server.first.labels(model), server.token.labels(model)
        self._queue, self._whole = server.queue.labels(model), server.whole.labels(model)

    def watch(self, slots: int, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Show the number of slots, and what the other two return whenever they are asked."""
        self._server.slots.labels(self._model).set(slots)
        self._server.running.labels(self._model).set_function(running)
        self._server.waiting.labels(self._model).set_function(waiting)

    def ended(self, outcome: str, seconds: float) -> None:
        """Count a request by one of `OUTCOMES`, and time it if it was answered."""
        self._server.requests.labels(self._model, outcome).inc()
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


def check_libraries() -> None:
    """Raise `UserError` if a library of the extra `serve` is not installed."""
    for name in ("starlette", "uvicorn", "prometheus_client"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            message = f"serving needs {name}, which is not installed: pip install 'gptjax[serve]'"
            raise UserError(message) from error
